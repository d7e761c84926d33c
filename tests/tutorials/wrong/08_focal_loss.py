"""Answers to the exercises of notebook 08 that its checks must refuse: exercise -> what is wrong -> the body."""

WRONG = {
    "focal_loss_of_probabilities": {
        "(1 - p)^beta in place of (1 - Y)^beta": """
positive = (1 - p) ** alpha * np.log(p)
elsewhere = (1 - p) ** beta * p**alpha * np.log(1 - p)
return -np.where(Y == 1, positive, elsewhere).sum() / max(np.count_nonzero(Y == 1), 1)
""",
        "alpha and beta exchanged": """
positive = (1 - p) ** alpha * np.log(p)
elsewhere = (1 - Y) ** alpha * p**beta * np.log(1 - p)
return -np.where(Y == 1, positive, elsewhere).sum() / max(np.count_nonzero(Y == 1), 1)
""",
        "the mean over all cells": """
positive = (1 - p) ** alpha * np.log(p)
elsewhere = (1 - Y) ** beta * p**alpha * np.log(1 - p)
return -np.where(Y == 1, positive, elsewhere).mean()
""",
        "no minus": """
positive = (1 - p) ** alpha * np.log(p)
elsewhere = (1 - Y) ** beta * p**alpha * np.log(1 - p)
return np.where(Y == 1, positive, elsewhere).sum() / max(np.count_nonzero(Y == 1), 1)
""",
        "an image without an object divided by 0": """
positive = (1 - p) ** alpha * np.log(p)
elsewhere = (1 - Y) ** beta * p**alpha * np.log(1 - p)
return -np.where(Y == 1, positive, elsewhere).sum() / (Y == 1).sum()
""",
        "every cell of a Gaussian is a positive": """
positive = (1 - p) ** alpha * np.log(p)
elsewhere = p**alpha * np.log(1 - p)
return -np.where(Y > 0, positive, elsewhere).sum() / max(np.count_nonzero(Y == 1), 1)
""",
        "regression towards Y": """
terms = Y * (1 - p) ** alpha * np.log(p) + (1 - Y) ** beta * p**alpha * np.log(1 - p)
return -terms.sum() / max(np.count_nonzero(Y == 1), 1)
""",
        "N counts images": """
positive = (1 - p) ** alpha * np.log(p)
elsewhere = (1 - Y) ** beta * p**alpha * np.log(1 - p)
return -np.where(Y == 1, positive, elsewhere).sum() / len(Y)
""",
    },
    "focal_terms": {
        "(1 - p)^beta in place of (1 - Y)^beta": """
x = np.where(Y == 1, -logits, logits)
weight = np.where(Y == 1, 1, sigmoid(-logits) ** beta)
softplus = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
return weight * sigmoid(x) ** alpha * softplus
""",
        "clamped as in the released code": """
p = np.clip(sigmoid(logits), 1e-4, 1 - 1e-4)
return -np.where(Y == 1, (1 - p) ** alpha * np.log(p), (1 - Y) ** beta * p**alpha * np.log(1 - p))
""",
        "log of the sigmoid": """
p = sigmoid(logits)
return -np.where(Y == 1, (1 - p) ** alpha * np.log(p), (1 - Y) ** beta * p**alpha * np.log(1 - p))
""",
        "softplus that overflows": """
x = np.where(Y == 1, -logits, logits)
weight = np.where(Y == 1, 1, (1 - Y) ** beta)
return weight * sigmoid(x) ** alpha * np.log1p(np.exp(x))
""",
        "log(1 + e) without log1p": """
x = np.where(Y == 1, -logits, logits)
weight = np.where(Y == 1, 1, (1 - Y) ** beta)
softplus = np.maximum(x, 0) + np.log(1 + np.exp(-np.abs(x)))
return weight * sigmoid(x) ** alpha * softplus
""",
        "the sign is not turned at a peak": """
weight = np.where(Y == 1, 1, (1 - Y) ** beta)
softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
return weight * sigmoid(logits) ** alpha * softplus
""",
        "a peak has the weight (1 - Y)^beta, which is 0": """
x = np.where(Y == 1, -logits, logits)
softplus = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
return (1 - Y) ** beta * sigmoid(x) ** alpha * softplus
""",
    },
    "focal_gradient": {
        "p^alpha taken as a constant": """
sign = np.where(Y == 1, -1, 1)
weight = np.where(Y == 1, 1, (1 - Y) ** beta)
p = sigmoid(sign * logits)
return sign * weight * p**alpha * p / max(np.count_nonzero(Y == 1), 1)
""",
        "the sign is not turned at a peak": """
sign = np.where(Y == 1, -1, 1)
x = sign * logits
weight = np.where(Y == 1, 1, (1 - Y) ** beta)
p, softplus = sigmoid(x), np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
return weight * p**alpha * (alpha * sigmoid(-x) * softplus + p) / max(np.count_nonzero(Y == 1), 1)
""",
        "not divided by N": """
sign = np.where(Y == 1, -1, 1)
x = sign * logits
weight = np.where(Y == 1, 1, (1 - Y) ** beta)
p, softplus = sigmoid(x), np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
return sign * weight * p**alpha * (alpha * sigmoid(-x) * softplus + p)
""",
        "along the probability, not the logit": """
sign = np.where(Y == 1, -1, 1)
x = sign * logits
weight = np.where(Y == 1, 1, (1 - Y) ** beta)
p, softplus = sigmoid(x), np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
slope = sign * weight * (alpha * p ** (alpha - 1) * softplus + p**alpha / (1 - p))
return slope / max(np.count_nonzero(Y == 1), 1)
""",
        "zero beyond the clamp": """
sign = np.where(Y == 1, -1, 1)
x = sign * logits
weight = np.where(Y == 1, 1, (1 - Y) ** beta)
p, softplus = sigmoid(x), np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
slope = sign * weight * p**alpha * (alpha * sigmoid(-x) * softplus + p)
return np.where((p > 1e-4) & (p < 1 - 1e-4), slope, 0) / max(np.count_nonzero(Y == 1), 1)
""",
    },
    "first_loss": {
        "(1 - prior)^beta in place of (1 - Y)^beta": """
positives = np.count_nonzero(Y == 1)
elsewhere = (1 - prior) ** beta * np.count_nonzero(Y != 1)
total = positives * (1 - prior) ** alpha * math.log(prior) + elsewhere * prior**alpha * math.log(1 - prior)
return -total / max(positives, 1)
""",
        "neighbours count in full": """
positives = np.count_nonzero(Y == 1)
elsewhere = np.count_nonzero(Y != 1)
total = positives * (1 - prior) ** alpha * math.log(prior) + elsewhere * prior**alpha * math.log(1 - prior)
return -total / max(positives, 1)
""",
        "not divided by the objects": """
positives = np.count_nonzero(Y == 1)
elsewhere = ((1 - Y) ** beta)[Y != 1].sum()
total = positives * (1 - prior) ** alpha * math.log(prior) + elsewhere * prior**alpha * math.log(1 - prior)
return -total
""",
        "logarithms to base 10": """
positives = np.count_nonzero(Y == 1)
elsewhere = ((1 - Y) ** beta)[Y != 1].sum()
total = positives * (1 - prior) ** alpha * math.log10(prior) + elsewhere * prior**alpha * math.log10(1 - prior)
return -total / max(positives, 1)
""",
        "an image without an object divided by 0": """
positives = (Y == 1).sum()
elsewhere = ((1 - Y) ** beta)[Y != 1].sum()
total = positives * (1 - prior) ** alpha * math.log(prior) + elsewhere * prior**alpha * math.log(1 - prior)
return -total / positives
""",
    },
}
