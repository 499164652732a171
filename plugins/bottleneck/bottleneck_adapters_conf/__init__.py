"""What this plugin adds to the configuration: one folder for each kind of plug."""
