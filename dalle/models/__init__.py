"""Plain torch models for one device. None of them knows about optimisers, processes or files."""
