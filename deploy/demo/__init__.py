"""``streamgru demo``: the whole job on the bundled Beijing data, with a report."""
