"""The command line of fit.py: flags, parser, checks, defaults and output; and errors of all scripts in one line."""
