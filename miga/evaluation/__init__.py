"""Evaluation of videos: VBench's quality dimensions, VBench-Long, drift. Pure measures and the networks they need.

Frames come in portions of any size, and every measure is the same whatever the portions are. What is kept of a video
while it streams does not grow with it, but for one number a frame.
"""
