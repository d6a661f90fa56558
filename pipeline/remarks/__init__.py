"""Remarks in the log of a training: settings that the readings or the last model contradict."""
