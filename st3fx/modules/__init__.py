"""The one way to touch ``nn.Module``: marks, attributes, state dicts, copies, hooks.

``converted`` makes the class that a module of a converted model gets: ``marks`` are what it
carries, ``attributes`` what its weights give to readers, ``saving`` its state dicts. ``state``
takes back what a trial run did. Imports the plan and the mathematics; knows no graphs. Start at
:mod:`st3fx.modules.converted`.
"""
