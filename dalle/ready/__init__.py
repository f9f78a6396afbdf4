"""Models by name: those that come with the package, folders, repositories of the Hugging Face Hub; and giving a model away."""
