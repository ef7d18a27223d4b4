"""a run, comparison or export folder -> one page to read. May import stages and what stands below.

Nothing here needs torch. What a folder lacks is named on the page, never made up.
"""
