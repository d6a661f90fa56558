"""``streamgru serve``: the page, and JSON over HTTP about the live stream. It only reads.

``routes`` lists the addresses, ``answers`` their JSON, ``reports`` fills it from a ``LiveView``. ``event_hub`` sends
live events, ``server`` runs all of it.
"""
