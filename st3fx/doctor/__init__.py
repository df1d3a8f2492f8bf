"""``st3fx doctor``: what works on this machine, found out by doing something small with each part.

``run`` has the table of probes, and asks a child process (``worker``) for one after the other, so
that a part that hangs or takes its process down is a line of the report and not its end. A probe of
what every command needs is in ``main_path``, the others in ``probes``. It may import everything
below the command line; importing the package imports neither torch nor anything of it.
"""
