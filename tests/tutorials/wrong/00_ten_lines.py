"""Answers to the exercises of 00_ten_lines that its checks must refuse: bodies in place of the solution."""

PEAKS = """
found = []
for row, column, label in np.argwhere(heatmap >= threshold).tolist():
    around = {around}
    if heatmap[row, column, label] {sign} around.max():
        found.append((row, column, label))
return {answer}
"""
AROUND = "heatmap[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2, label]"
BEST_FIRST = "sorted(found, key=lambda peak: -heatmap[peak])"

WRONG = {
    "peaks": {
        "a neighbour of another class hides it": PEAKS.format(
            around=AROUND.replace(", label]", "]"), sign="==", answer=BEST_FIRST
        ),
        "four neighbours": PEAKS.format(
            around="""np.concatenate([
        heatmap[max(row - 1, 0) : row + 2, column, label],
        heatmap[row, max(column - 1, 0) : column + 2, label],
    ])""",
            sign="==",
            answer=BEST_FIRST,
        ),
        "the border is left out": """
found = []
for row in range(1, heatmap.shape[0] - 1):
    for column in range(1, heatmap.shape[1] - 1):
        for label in range(heatmap.shape[2]):
            value = heatmap[row, column, label]
            if value >= threshold and value == heatmap[row - 1 : row + 2, column - 1 : column + 2, label].max():
                found.append((row, column, label))
return sorted(found, key=lambda peak: -heatmap[peak])
""",
        "every cell above the threshold": """
return sorted(map(tuple, np.argwhere(heatmap >= threshold).tolist()), key=lambda peak: -heatmap[peak])
""",
        "worst first": PEAKS.format(around=AROUND, sign="==", answer=BEST_FIRST.replace("-heatmap", "heatmap")),
        "no threshold": PEAKS.format(around=AROUND, sign="==", answer=BEST_FIRST).replace(">= threshold", "> 0"),
    },
    "box_at": {
        "y2 with a minus": """
x, y = column + offset[row, column, 0], row + offset[row, column, 1]
width, height = size[row, column]
return 4 * (x - width / 2), 4 * (y - height / 2), 4 * (x + width / 2), 4 * (y - height / 2)
""",
        "x and y change places": """
x, y = row + offset[row, column, 0], column + offset[row, column, 1]
width, height = size[row, column]
return 4 * (x - width / 2), 4 * (y - height / 2), 4 * (x + width / 2), 4 * (y + height / 2)
""",
        "in cells": """
x, y = column + offset[row, column, 0], row + offset[row, column, 1]
width, height = size[row, column]
return x - width / 2, y - height / 2, x + width / 2, y + height / 2
""",
        "the offset is forgotten": """
width, height = size[row, column]
return 4 * (column - width / 2), 4 * (row - height / 2), 4 * (column + width / 2), 4 * (row + height / 2)
""",
        "a whole size to each side": """
x, y = column + offset[row, column, 0], row + offset[row, column, 1]
width, height = size[row, column]
return 4 * (x - width), 4 * (y - height), 4 * (x + width), 4 * (y + height)
""",
        "height before width": """
x, y = column + offset[row, column, 0], row + offset[row, column, 1]
height, width = size[row, column]
return 4 * (x - width / 2), 4 * (y - height / 2), 4 * (x + width / 2), 4 * (y + height / 2)
""",
    },
    "iou": {
        "negative lengths": """
both = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
""",
        "only the product is kept above 0": """
both = max(0, (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1])))
return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
""",
        "what is in both counts twice": """
both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))
""",
        "of the smaller box": """
both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
return both / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
""",
        "one pixel more": """
both = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
either = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - both
return both / either
""",
    },
}
