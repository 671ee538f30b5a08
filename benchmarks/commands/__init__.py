"""The commands, one file each: `add_options(parser)` says what may be asked, `command(options)` does it."""
