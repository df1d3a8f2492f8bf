"""The report of a run: what was measured becomes charts, a page and pictures.

Facts (``facts``) are plain data, and charts of them (``charts``, ``flow``) too: ``chart`` says what
one can hold. Two renderers draw the same charts, ``svg`` for the page and ``png`` for pictures and
beside a run. The page (``page``) is told in sections, of the model (``model_sections``) and of the
run (``run_sections``). One model at many sparsities is ``sweep_result``, and ``sweep_page`` its
page. It may import every engine; start at ``page.STORY``.
"""
