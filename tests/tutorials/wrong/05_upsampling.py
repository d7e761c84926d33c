"""Wrong answers to the exercises of 05, each of which the notebook's check must refuse."""

WRONG = {
    "nearest": {
        "the mean of the block instead of its sum": """
            y = x.repeat(factor, axis=1).repeat(factor, axis=2)

            def backward(dy):
                return dy.reshape(batch, height, factor, width, factor, channels).mean(axis=(2, 4))

            return y, backward
        """,
        "only one pixel of each block": """
            y = x.repeat(factor, axis=1).repeat(factor, axis=2)
            return y, lambda dy: dy[:, ::factor, ::factor]
        """,
        "the map tiled instead of its pixels repeated": """
            y = np.tile(x, (1, factor, factor, 1))

            def backward(dy):
                return dy.reshape(batch, factor, height, factor, width, channels).sum(axis=(1, 3))

            return y, backward
        """,
        "blocks cut the wrong way round": """
            y = x.repeat(factor, axis=1).repeat(factor, axis=2)

            def backward(dy):
                return dy.reshape(batch, factor, height, factor, width, channels).sum(axis=(1, 3))

            return y, backward
        """,
    },
    "bilinear_matrix": {
        "positions i / F, as if pixels were points at their corners": """
            for i in range(factor * size):
                position = min(i / factor, size - 1)
                left = int(position)
                matrix[i, left] += 1 - (position - left)
                matrix[i, min(left + 1, size - 1)] += position - left
        """,
        "corners aligned: the outermost centres of both maps put on each other": """
            for i in range(factor * size):
                position = i * (size - 1) / max(factor * size - 1, 1)
                left = int(position)
                matrix[i, left] += 1 - (position - left)
                matrix[i, min(left + 1, size - 1)] += position - left
        """,
        "positions not moved into the map: the border is extrapolated": """
            for i in range(factor * size):
                position = (i + 0.5) / factor - 0.5
                left = min(max(math.floor(position), 0), max(size - 2, 0))
                matrix[i, left] += 1 - (position - left)
                matrix[i, min(left + 1, size - 1)] += position - left
        """,
        "the weights of the two neighbours exchanged": """
            for i in range(factor * size):
                position = min(max((i + 0.5) / factor - 0.5, 0), size - 1)
                left = int(position)
                matrix[i, left] += position - left
                matrix[i, min(left + 1, size - 1)] += 1 - (position - left)
        """,
        "zeros beyond the map": """
            for i in range(factor * size):
                position = (i + 0.5) / factor - 0.5
                left = math.floor(position)
                for pixel, weight in ((left, 1 - (position - left)), (left + 1, position - left)):
                    if 0 <= pixel < size:
                        matrix[i, pixel] += weight
        """,
    },
    "transposed": {
        "assigned instead of added": """
            for u, v in np.ndindex(kernel, kernel):
                rows_hit = slice(u, u + stride * (height - 1) + 1, stride)
                whole[:, rows_hit, v : v + stride * (width - 1) + 1 : stride] = x @ weight[:, :, u, v]
            return whole[:, padding : rows - padding, padding : columns - padding]
        """,
        "the kernel turned round": """
            for u, v in np.ndindex(kernel, kernel):
                rows_hit = slice(u, u + stride * (height - 1) + 1, stride)
                stamp = x @ weight[:, :, kernel - 1 - u, kernel - 1 - v]
                whole[:, rows_hit, v : v + stride * (width - 1) + 1 : stride] += stamp
            return whole[:, padding : rows - padding, padding : columns - padding]
        """,
        "stamps side by side, the stride forgotten": """
            for u, v in np.ndindex(kernel, kernel):
                whole[:, u : u + height, v : v + width] += x @ weight[:, :, u, v]
            return whole[:, padding : rows - padding, padding : columns - padding]
        """,
        "the padding not cut off": """
            for u, v in np.ndindex(kernel, kernel):
                rows_hit = slice(u, u + stride * (height - 1) + 1, stride)
                whole[:, rows_hit, v : v + stride * (width - 1) + 1 : stride] += x @ weight[:, :, u, v]
            return whole
        """,
        "the padding cut off at one end only": """
            for u, v in np.ndindex(kernel, kernel):
                rows_hit = slice(u, u + stride * (height - 1) + 1, stride)
                whole[:, rows_hit, v : v + stride * (width - 1) + 1 : stride] += x @ weight[:, :, u, v]
            return whole[:, : rows - 2 * padding, : columns - 2 * padding]
        """,
    },
    "transposed_gradients": {
        "dx by stamping once more": """
            dx = transposed(dy, weight.transpose(1, 0, 2, 3), stride, padding)
            dweight = convolution_weight_gradient(dy, x, weight.shape[2], stride, padding)
            return dx, dweight
        """,
        "dx with the kernel turned round": """
            dx = convolve(dy, weight[:, :, ::-1, ::-1], stride, padding)
            dweight = convolution_weight_gradient(dy, x, weight.shape[2], stride, padding)
            return dx, dweight
        """,
        "dweight with inputs and outputs exchanged": """
            dx = convolve(dy, weight, stride, padding)
            dweight = convolution_weight_gradient(dy, x, weight.shape[2], stride, padding)
            return dx, dweight.transpose(1, 0, 2, 3)
        """,
        "dweight with rows and columns exchanged": """
            dx = convolve(dy, weight, stride, padding)
            dweight = convolution_weight_gradient(dy, x, weight.shape[2], stride, padding)
            return dx, dweight.transpose(0, 1, 3, 2)
        """,
        "dweight as a mean over the batch": """
            dx = convolve(dy, weight, stride, padding)
            dweight = convolution_weight_gradient(dy, x, weight.shape[2], stride, padding)
            return dx, dweight / len(x)
        """,
    },
    "bilinear_kernel": {
        "a triangle on whole distances, one pixel off": """
            taps = 2 * factor - factor % 2
            return 1 - np.abs(np.arange(taps) - factor) / factor
        """,
        "scaled to the sum 1, so that maps darken by F": """
            taps = 2 * factor - factor % 2
            distance = np.abs(np.arange(taps) - (taps - 1) / 2)
            return (1 - distance / factor) / factor
        """,
        "a box, which is nearest": """
            return np.ones(factor)
        """,
        "a triangle that ends at the last tap": """
            taps = 2 * factor - factor % 2
            distance = np.abs(np.arange(taps) - (taps - 1) / 2)
            return 1 - distance / ((taps - 1) / 2)
        """,
    },
}
