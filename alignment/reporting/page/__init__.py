"""The report page: one HTML file that shows a whole lineage, made of plain values and opened without a network.

``gather`` reads the records, ``layout`` places a graph, ``models`` ranks what was measured; ``front``, ``curves`` and
``texts`` say what is drawn and shown, ``figures`` in which form, and ``document`` writes the page around it with what
lies in ``assets/``. Texts of models are untrusted: they reach the page escaped, as text or in JSON.
"""
