"""Images in, trained model out. Everything that needs torch lives here, and runs in a child process."""
