"""The command line of fit.py: flags, checks, defaults and output. It also has the parser of the other scripts."""
