"""Commands on recordings: ``daq-ioc record|info|stats|export|plot|repair``, one module each.

Each module has ``add_parser(subparsers)``, which registers its command; the command is a function
of the parsed arguments that returns the exit status.
"""
