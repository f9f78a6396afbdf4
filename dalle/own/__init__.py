"""A person's own folder of pictures on the whole road: what is planned for it and for how long, what was done already, and the
page that tells it. The commands themselves are called by `dalle.cli.train_folder`."""
