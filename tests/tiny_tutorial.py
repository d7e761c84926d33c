"""A tutorial of one exercise, for tests of the course's machinery."""

EXERCISE = '''
def half(x):
    """Half of x."""
    scale = 2
    ### BEGIN SOLUTION hint: divide by "scale"; \\frac
    if scale:
        y = x / scale
    return y
    ### END SOLUTION
'''.strip("\n")
CHECK = """
assert half(4) is not None, "return the half"
assert half(4) == 2, f"half of 4 is 2, not {half(4)}"
""".strip()
TUTORIAL = f"""
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Halves
#
# - **Goal** To halve
#   numbers.
# - **You need** 06.
# - **Minutes** 40 to read and work / runs in about 12 s.
# - **Equations** E1, E10.
# - **What you should see** 2.

# %%
import math

# %% tags=["exercise"]
{EXERCISE}


# %% [markdown]
# Check it.

# %% tags=["check"]
{CHECK}

# %%
quarter = half(half(math.floor(4.5)))
""".lstrip()
