"""The command line: its verbs, arguments and config files."""
