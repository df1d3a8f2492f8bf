"""``st3fx doctor``: what works on this machine, found out by doing something small with each part.

Every probe runs in a child process, so that a part that hangs or takes its process down is a line
of the report and not its end. Importing this package imports neither torch nor anything of it.
"""
