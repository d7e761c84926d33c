"""Every kernel that the package launches: file -> the expressions that name its instantiations.

The stand-in compiles a file's list as one library; NVRTC's test compiles the same lists for real GPUs.
"""

FLOATS = ("float", "__half", "__nv_bfloat16")

INSTANTIATIONS: dict[str, list[str]] = {}
