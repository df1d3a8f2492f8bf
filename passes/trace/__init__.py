"""The tracer: captures one module's forward as an fx graph with guards, or says what stopped it.

:func:`capture` is the door. What else is exported belongs to its result: :class:`Capture`, the mark
of reads by another way (:data:`HANDED`), the writes in a graph (:func:`writes_in`), and the line of
a user's code that an error came from (:func:`source_line`). Nobody imports the modules below but
the package itself. It imports :mod:`st3fx.graphs` and below, and torch.

Start at ``trace``, the tracer. Its proxies (``proxies``) ask for values (``questions``), and each
answer is a guard; so is what code reads of modules, objects, classes and globals (``reads``).
``patches`` is what a model's code sees meanwhile. Contexts become ``regions``, stored attributes
``outputs``, operators in place on parameters ``writes``; blocks that repeat are traced once
(``repeats``). What a graph would lose is refused in
``ambient``; ``words`` puts a node into words.

Why it is our own and not TorchDynamo. A captured graph takes the place of a forward in a module
that goes on living in eager mode:

* Only modules with sites are traced into. All others stay calls of the user's modules, with their
  state, their random numbers and their hooks; Dynamo inlines them into one function of tensors.
* The graph runs with the real module as ``self`` and reads its parameters and buffers by their
  names, so that it is as good after ``.to()``, sharding or loading. Each of its nodes has a place
  for a threshold between the computation of a weight and its product.
* Every answer that traced code was given is a guard of a plain kind (an attribute, a name, a size)
  that can be copied, pickled and printed. A call that does not fit runs the module's own forward,
  which is as sparse: nothing is captured anew at run time.
* A graph is the same operators in the same order, so it can be held against the original bit for
  bit, and is dropped where one differs.
"""

from st3fx.passes.trace.ambient import place, source_line
from st3fx.passes.trace.trace import HANDED, Capture, capture
from st3fx.passes.trace.writes import writes_in

__all__ = ["HANDED", "Capture", "capture", "place", "source_line", "writes_in"]
