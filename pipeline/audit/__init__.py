"""The topics read offline: audits of what a forecaster did.

``verify`` is where to begin.
"""
