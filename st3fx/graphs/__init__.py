"""What a captured graph is and how it runs.

``graph`` compiles code that runs with a module as ``self``; ``calls``, ``guards`` and
``definitions`` say for which calls and in which state it holds; ``forward`` chooses between the
graphs and the module's own forward. How graphs are captured is :mod:`st3fx.passes.trace`. Start at
:mod:`st3fx.graphs.graph`.
"""
