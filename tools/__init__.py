"""The command-line tools: each file is a script, and a command of ``tagclip``."""
