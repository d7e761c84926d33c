"""Wrong answers to the exercises of 06, each of which the notebook's check must refuse."""

WRONG = {
    "Residual": {
        "relu before the addition": """
            y = ops.relu(self.bn1(self.conv1(x)))
            y = ops.relu(self.bn2(self.conv2(y)))
            return y + (self.downsample(x) if self.downsample else x)
        """,
        "no way around": """
            y = ops.relu(self.bn1(self.conv1(x)))
            return ops.relu(self.bn2(self.conv2(y)))
        """,
        "no relu between the convolutions": """
            y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
            return ops.relu(y + (self.downsample(x) if self.downsample else x))
        """,
        "a way around only where shapes change": """
            y = ops.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            return ops.relu(y + self.downsample(x)) if self.downsample else ops.relu(y)
        """,
        "the last relu left out": """
            y = ops.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            return y + (self.downsample(x) if self.downsample else x)
        """,
    },
    "seen": {
        "in the order of the forward pass": """
            for kind, *numbers in layers:
                if kind == "conv":
                    kernel, stride, padding = numbers
                    first, last = stride * first - padding, stride * last - padding + kernel - 1
                else:
                    first, last = first // numbers[0], last // numbers[0]
            return first, last
        """,
        "the padding forgotten": """
            for kind, *numbers in reversed(layers):
                if kind == "conv":
                    kernel, stride, _ = numbers
                    first, last = stride * first, stride * last + kernel - 1
                else:
                    first, last = first // numbers[0], last // numbers[0]
            return first, last
        """,
        "the kernel added as a whole": """
            for kind, *numbers in reversed(layers):
                if kind == "conv":
                    kernel, stride, padding = numbers
                    first, last = stride * first - padding, stride * last - padding + kernel
                else:
                    first, last = first // numbers[0], last // numbers[0]
            return first, last
        """,
        "upsampling multiplies": """
            for kind, *numbers in reversed(layers):
                if kind == "conv":
                    kernel, stride, padding = numbers
                    first, last = stride * first - padding, stride * last - padding + kernel - 1
                else:
                    first, last = first * numbers[0], last * numbers[0]
            return first, last
        """,
        "cut off at the border on the way": """
            for kind, *numbers in reversed(layers):
                if kind == "conv":
                    kernel, stride, padding = numbers
                    first, last = max(stride * first - padding, 0), stride * last - padding + kernel - 1
                else:
                    first, last = first // numbers[0], last // numbers[0]
            return first, last
        """,
    },
    "prior_bias": {
        "the sign: every cell begins sure of an object": "return math.log((1 - prior) / prior)",
        "logarithm to base 10": "return -math.log10((1 - prior) / prior)",
        "the logarithm of the prior, not of the odds": "return math.log(prior)",
        "the brackets": "return -math.log(1 - prior) / prior",
    },
    "expected_first_loss": {
        "the mean over cells": """
            at_objects = (heatmap == 1) * (1 - prior) ** 2 * math.log(prior)
            elsewhere = (heatmap < 1) * (1 - heatmap) ** 4 * prior**2 * math.log(1 - prior)
            return -(at_objects + elsewhere).mean()
        """,
        "no mercy for the cells around an object": """
            objects = (heatmap == 1).sum()
            at_objects = objects * (1 - prior) ** 2 * math.log(prior)
            elsewhere = (heatmap < 1).sum() * prior**2 * math.log(1 - prior)
            return -(at_objects + elsewhere) / objects
        """,
        "not divided by the objects": """
            at_objects = (heatmap == 1).sum() * (1 - prior) ** 2 * math.log(prior)
            elsewhere = ((1 - heatmap[heatmap < 1]) ** 4).sum() * prior**2 * math.log(1 - prior)
            return -(at_objects + elsewhere)
        """,
        "plain cross entropy at the objects": """
            objects = (heatmap == 1).sum()
            elsewhere = ((1 - heatmap[heatmap < 1]) ** 4).sum() * prior**2 * math.log(1 - prior)
            return -(objects * math.log(prior) + elsewhere) / objects
        """,
        "(1 - prior) to the fourth where (1 - Y) belongs": """
            objects = (heatmap == 1).sum()
            at_objects = objects * (1 - prior) ** 2 * math.log(prior)
            elsewhere = (heatmap < 1).sum() * (1 - prior) ** 4 * prior**2 * math.log(1 - prior)
            return -(at_objects + elsewhere) / objects
        """,
    },
    "adam_step": {
        "no correction of the means": """
            mean = beta1 * mean + (1 - beta1) * gradient
            variance = beta2 * variance + (1 - beta2) * gradient**2
            theta = theta - lr * mean / (np.sqrt(variance) + epsilon)
        """,
        "the corrected means kept": """
            mean = beta1 * mean + (1 - beta1) * gradient
            variance = beta2 * variance + (1 - beta2) * gradient**2
            mean, variance = mean / (1 - beta1**step), variance / (1 - beta2**step)
            theta = theta - lr * mean / (np.sqrt(variance) + epsilon)
        """,
        "epsilon inside the root": """
            mean = beta1 * mean + (1 - beta1) * gradient
            variance = beta2 * variance + (1 - beta2) * gradient**2
            corrected, usual = mean / (1 - beta1**step), variance / (1 - beta2**step)
            theta = theta - lr * corrected / np.sqrt(usual + epsilon)
        """,
        "the betas exchanged": """
            mean = beta2 * mean + (1 - beta2) * gradient
            variance = beta1 * variance + (1 - beta1) * gradient**2
            corrected, usual = mean / (1 - beta2**step), variance / (1 - beta1**step)
            theta = theta - lr * corrected / (np.sqrt(usual) + epsilon)
        """,
        "the root forgotten": """
            mean = beta1 * mean + (1 - beta1) * gradient
            variance = beta2 * variance + (1 - beta2) * gradient**2
            corrected, usual = mean / (1 - beta1**step), variance / (1 - beta2**step)
            theta = theta - lr * corrected / (usual + epsilon)
        """,
    },
}
