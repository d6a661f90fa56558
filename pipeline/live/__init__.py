"""The stream as seen by a process that only reads the topics; ``streamgru serve`` builds on it.

``index`` keeps a row of numbers per sensor and where its records lie; the records themselves stay in Kafka, and
``record_reader`` reads them by their offsets. ``follower`` polls the topics. ``event_ids`` and ``replay`` let a client
continue where it stopped.
"""
