"""What a person sees. Nothing here computes or reads files.

``tables`` has the console and the makers of all tables, ``words`` numbers and small texts. A result
has a view (``plan``, ``outcome``, ``flops``, ``bench``, ``demo``), and so has what is under way:
``display`` for a training, ``progress`` for anything else. It imports results for their types
alone; start at ``tables``.
"""
