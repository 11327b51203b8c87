"""What a person asks for, one file each: ``<command>.py`` holds the function ``<command>(run, **settings)``.

The file's docstring is the command's help, its first line the entry in `constellation --help`;
``configs/<command>.yaml`` holds the settings and their defaults. Nothing is registered anywhere else.
"""
