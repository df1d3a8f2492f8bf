"""Training of converted models: one loop over Accelerate, and what keeps it safe.

``settings`` says all that a run can be asked for, ``recipes`` where it comes from. A ``session`` is
what a run consists of; ``loop`` takes its steps, ``saving`` and ``folder`` make it go on after any
end, ``finish`` checks what came of it. Watchers are told by ``report``. It may import models, data
and files, and no command; start at ``loop.train``.
"""
