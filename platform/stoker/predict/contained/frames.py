"""The bytes between the three processes: all integers are unsigned, little endian; nothing is pickled.

=================  ==================================================================================================
from, to           bytes
=================  ==================================================================================================
template, parent   ``PID`` once it has imported everything, and then for each child that it forked: its process id
parent, template   ``ORDER``: ``FORK`` and the lane's niceness, with the child's end of a socket pair beside it
                   (SCM_RIGHTS); or ``KILL`` and a process id
parent, child      ``COUNT``, the number of images; ``COUNT`` for each, its length; then the images
child, parent      for each image, in order, as soon as it is decoded: ``ANSWER``, a verdict and a length; then the
                   pixels, uint8 [S, S, 3], or the reason as UTF-8, or nothing where memory ran out
=================  ==================================================================================================
"""

from __future__ import annotations

import struct

__all__ = [
    "ANSWER",
    "COUNT",
    "FORK",
    "KILL",
    "LONGEST_REASON",
    "MOST_IMAGES",
    "NO_MEMORY",
    "ORDER",
    "PID",
    "PIXELS",
    "REFUSED",
]

PID = struct.Struct("<I")
ORDER = struct.Struct("<cI")
FORK, KILL = b"f", b"k"
COUNT = struct.Struct("<I")
MOST_IMAGES = 32
"""of a group"""
ANSWER = struct.Struct("<cI")
PIXELS, REFUSED, NO_MEMORY = b"p", b"r", b"m"
LONGEST_REASON = 1000
"""bytes"""
