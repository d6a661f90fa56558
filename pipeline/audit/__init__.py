"""The topics read offline: audits of what a forecaster did, and the records that it set aside.

``verify`` is where to begin.
"""
