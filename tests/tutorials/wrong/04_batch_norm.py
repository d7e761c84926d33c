"""Answers to the exercises of 04_batch_norm that its checks must refuse: bodies in place of the solution."""

BATCH_NORM = """
mean, variance = statistics(x)
s = np.sqrt(variance + epsilon)
normal = (x - mean) / s

def backward(dy):
    along_one, along_x = dy.mean((0, 1, 2)), (dy * normal).mean((0, 1, 2))
    dx = {dx}
    return dx, {dweight}, dy.sum((0, 1, 2))

return weight * normal + bias, backward
"""
DX = "weight / s * (dy - along_one - normal * along_x)"
DWEIGHT = "(dy * normal).sum((0, 1, 2))"

WRONG = {
    "statistics": {
        "the one-pass formula": """
mean = x.mean((0, 1, 2))
return mean, (x * x).mean((0, 1, 2)) - mean**2
""",
        "over the images alone": """
mean = x.mean(0)
return mean, ((x - mean) ** 2).mean(0)
""",
        "over the channels, too": """
return np.full(x.shape[-1], x.mean()), np.full(x.shape[-1], x.var())
""",
        "n - 1": """
mean = x.mean((0, 1, 2))
return mean, x.var((0, 1, 2), ddof=1)
""",
        "the standard deviation": """
return x.mean((0, 1, 2)), x.std((0, 1, 2))
""",
    },
    "combine": {
        "the distance of the means is forgotten": """
(count_a, mean_a, squares_a), (count_b, mean_b, squares_b) = a, b
count = count_a + count_b
return count, (count_a * mean_a + count_b * mean_b) / count, squares_a + squares_b
""",
        "the mean of the means": """
(count_a, mean_a, squares_a), (count_b, mean_b, squares_b) = a, b
count = count_a + count_b
return count, (mean_a + mean_b) / 2, squares_a + squares_b + (mean_a - mean_b) ** 2 * count_a * count_b / count
""",
        "the distance is not squared": """
(count_a, mean_a, squares_a), (count_b, mean_b, squares_b) = a, b
count = count_a + count_b
mean = (count_a * mean_a + count_b * mean_b) / count
return count, mean, squares_a + squares_b + abs(mean_a - mean_b) * count_a * count_b / count
""",
        "the count is that of one block": """
(count_a, mean_a, squares_a), (count_b, mean_b, squares_b) = a, b
mean = (count_a * mean_a + count_b * mean_b) / (count_a + count_b)
return count_a, mean, squares_a + squares_b + (mean_a - mean_b) ** 2 * count_a * count_b / (count_a + count_b)
""",
    },
    "batch_norm": {
        "mean and variance as constants": BATCH_NORM.format(dx="weight / s * dy", dweight=DWEIGHT),
        "zeros, which a summed loss does not see": BATCH_NORM.format(dx="0 * dy", dweight=DWEIGHT),
        "no term along x̂": BATCH_NORM.format(dx="weight / s * (dy - along_one)", dweight=DWEIGHT),
        "no mean taken out": BATCH_NORM.format(dx="weight / s * (dy - normal * along_x)", dweight=DWEIGHT),
        "without γ": BATCH_NORM.format(dx="(dy - along_one - normal * along_x) / s", dweight=DWEIGHT),
        "without ε": BATCH_NORM.format(dx=DX.replace("/ s", "/ np.sqrt(variance)"), dweight=DWEIGHT),
        "dweight from x": BATCH_NORM.format(dx=DX, dweight="(dy * x).sum((0, 1, 2))"),
        "ε added to the deviation": BATCH_NORM.format(dx=DX, dweight=DWEIGHT).replace(
            "np.sqrt(variance + epsilon)", "np.sqrt(variance) + epsilon"
        ),
    },
    "update": {
        "momentum on the old value": """
mean, variance = statistics(x)
count = x.size // x.shape[-1]
variance = variance * count / (count - 1)
return momentum * running_mean + (1 - momentum) * mean, momentum * running_var + (1 - momentum) * variance
""",
        "the batch's own variance": """
mean, variance = statistics(x)
return (1 - momentum) * running_mean + momentum * mean, (1 - momentum) * running_var + momentum * variance
""",
        "the deviation is averaged": """
mean, variance = statistics(x)
count = x.size // x.shape[-1]
deviation = (1 - momentum) * np.sqrt(running_var) + momentum * np.sqrt(variance * count / (count - 1))
return (1 - momentum) * running_mean + momentum * mean, deviation**2
""",
        "n is the number of images": """
mean, variance = statistics(x)
count = len(x) + 1
unbiased = variance * count / (count - 1)
return (1 - momentum) * running_mean + momentum * mean, (1 - momentum) * running_var + momentum * unbiased
""",
    },
    "folded": {
        "divided by the variance": """
scale = gamma / (variance + epsilon)
return weight * scale[:, None, None, None], scale * (bias - mean) + beta
""",
        "along the input channels": """
scale = gamma / np.sqrt(variance + epsilon)
return weight * scale[None, :, None, None], scale * (bias - mean) + beta
""",
        "the convolution's bias is forgotten": """
scale = gamma / np.sqrt(variance + epsilon)
return weight * scale[:, None, None, None], beta - scale * mean
""",
        "the mean is not scaled": """
scale = gamma / np.sqrt(variance + epsilon)
return weight * scale[:, None, None, None], scale * bias - mean + beta
""",
        "gamma is forgotten": """
scale = 1 / np.sqrt(variance + epsilon)
return weight * scale[:, None, None, None], gamma * scale * (bias - mean) + beta
""",
    },
}
