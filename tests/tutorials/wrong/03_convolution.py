"""Wrong answers to the exercises of 03, each of which the notebook's check must refuse."""

WRONG = {
    "convolve_loop": {
        "the kernel turned round, as in mathematics": """
            for b, i, j, o in np.ndindex(y.shape):
                for u, v, c in np.ndindex(kernel, kernel, channels):
                    pixel = padded[b, stride * i + u, stride * j + v, c]
                    y[b, i, j, o] += pixel * weight[o, c, kernel - 1 - u, kernel - 1 - v]
        """,
        "the stride forgotten": """
            for b, i, j, o in np.ndindex(y.shape):
                for u, v, c in np.ndindex(kernel, kernel, channels):
                    y[b, i, j, o] += padded[b, i + u, j + v, c] * weight[o, c, u, v]
        """,
        "only the first channel": """
            for b, i, j, o in np.ndindex(y.shape):
                for u, v in np.ndindex(kernel, kernel):
                    y[b, i, j, o] += padded[b, stride * i + u, stride * j + v, 0] * weight[o, 0, u, v]
        """,
        "rows and columns of the kernel exchanged": """
            for b, i, j, o in np.ndindex(y.shape):
                for u, v, c in np.ndindex(kernel, kernel, channels):
                    y[b, i, j, o] += padded[b, stride * i + u, stride * j + v, c] * weight[o, c, v, u]
        """,
        "assigned instead of added": """
            for b, i, j, o in np.ndindex(y.shape):
                for u, v, c in np.ndindex(kernel, kernel, channels):
                    y[b, i, j, o] = padded[b, stride * i + u, stride * j + v, c] * weight[o, c, u, v]
        """,
    },
    "windows": {
        "the stride forgotten in the steps": """
            batch, height, width, channels = x.shape
            image, row, column, channel = x.strides
            shape = (batch, *(output_size(n, kernel, stride, 0) for n in (height, width)), kernel, kernel, channels)
            return as_strided(x, shape, (image, row, column, row, column, channel), writeable=False)
        """,
        "rows and columns exchanged inside the window": """
            batch, height, width, channels = x.shape
            image, row, column, channel = x.strides
            shape = (batch, *(output_size(n, kernel, stride, 0) for n in (height, width)), kernel, kernel, channels)
            steps = (image, stride * row, stride * column, column, row, channel)
            return as_strided(x, shape, steps, writeable=False)
        """,
        "steps from the shape, as if no array were a slice": """
            batch, height, width, channels = x.shape
            channel = x.itemsize
            column = channels * channel
            row = width * column
            image = height * row
            shape = (batch, *(output_size(n, kernel, stride, 0) for n in (height, width)), kernel, kernel, channels)
            steps = (image, stride * row, stride * column, row, column, channel)
            return as_strided(x, shape, steps, writeable=False)
        """,
        "a copy of the windows": """
            seen = sliding_window_view(x, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
            return np.ascontiguousarray(seen.transpose(0, 1, 2, 4, 5, 3))
        """,
        "the channels before the window": """
            return sliding_window_view(x, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
        """,
    },
    "convolve_strips": {
        "all columns first": """
            last = min(first + rows, height)
            columns = im2col(x, kernel, stride, padding).reshape(len(x), height, width, -1)[b, first:last]
            y[b, first:last] = columns @ matrix
        """,
        "the stride forgotten where the strip begins": """
            last = min(first + rows, height)
            seen = padded[b : b + 1, first : first + stride * (last - first - 1) + kernel]
            columns = windows(seen, kernel, stride).reshape(-1, len(matrix))
            y[b, first:last] = (columns @ matrix).reshape(last - first, width, -1)
        """,
        "always the first image": """
            last = min(first + rows, height)
            seen = padded[:1, stride * first : stride * (last - 1) + kernel]
            columns = windows(seen, kernel, stride).reshape(-1, len(matrix))
            y[b, first:last] = (columns @ matrix).reshape(last - first, width, -1)
        """,
        "the last strip left out when it is lower": """
            last = first + rows
            if last <= height:
                seen = padded[b : b + 1, stride * first : stride * (last - 1) + kernel]
                columns = windows(seen, kernel, stride).reshape(-1, len(matrix))
                y[b, first:last] = (columns @ matrix).reshape(last - first, width, -1)
        """,
        "no row shared with the next strip": """
            last = min(first + rows, height)
            seen = np.zeros_like(padded[:1, : stride * (last - first - 1) + kernel])
            own = padded[b : b + 1, stride * first : stride * last]
            seen[:, : own.shape[1]] = own[:, : seen.shape[1]]
            columns = windows(seen, kernel, stride).reshape(-1, len(matrix))
            y[b, first:last] = (columns @ matrix).reshape(last - first, width, -1)
        """,
    },
    "cook_toom": {
        "B transposed": """
            A, G = evaluation(points, outputs), evaluation(points, taps)
            B = np.linalg.inv(evaluation(points, outputs + taps - 1))
            scale = np.array([math.prod(p - q for q in points if q != p) for p in points] + [1.0])
            return A, G / scale[:, None], (B * scale).T
        """,
        "not inverted": """
            return evaluation(points, outputs), evaluation(points, taps), evaluation(points, outputs + taps - 1)
        """,
        "B scaled, but not G": """
            A, G = evaluation(points, outputs), evaluation(points, taps)
            B = np.linalg.inv(evaluation(points, outputs + taps - 1))
            scale = np.array([math.prod(p - q for q in points if q != p) for p in points] + [1.0])
            return A, G, B * scale
        """,
        "rows of B scaled instead of columns": """
            A, G = evaluation(points, outputs), evaluation(points, taps)
            B = np.linalg.inv(evaluation(points, outputs + taps - 1))
            scale = np.array([math.prod(p - q for q in points if q != p) for p in points] + [1.0])
            return A, G / scale[:, None], B * scale[:, None]
        """,
        "fractions left in B": """
            A, G = evaluation(points, outputs), evaluation(points, taps)
            return A, G, np.linalg.inv(evaluation(points, outputs + taps - 1))
        """,
    },
    "input_gradient": {
        "assigned instead of added": """
            for u, v in np.ndindex(kernel, kernel):
                rows_seen = slice(u, u + stride * (rows - 1) + 1, stride)
                padded[:, rows_seen, v : v + stride * (columns - 1) + 1 : stride] = dy @ weight[:, :, u, v]
            return padded[:, padding : padding + height, padding : padding + width]
        """,
        "the kernel turned round": """
            for u, v in np.ndindex(kernel, kernel):
                rows_seen = slice(u, u + stride * (rows - 1) + 1, stride)
                back = dy @ weight[:, :, kernel - 1 - u, kernel - 1 - v]
                padded[:, rows_seen, v : v + stride * (columns - 1) + 1 : stride] += back
            return padded[:, padding : padding + height, padding : padding + width]
        """,
        "the stride forgotten": """
            for u, v in np.ndindex(kernel, kernel):
                padded[:, u : u + rows, v : v + columns] += dy @ weight[:, :, u, v]
            return padded[:, padding : padding + height, padding : padding + width]
        """,
        "the padding not cut off": """
            for u, v in np.ndindex(kernel, kernel):
                rows_seen = slice(u, u + stride * (rows - 1) + 1, stride)
                padded[:, rows_seen, v : v + stride * (columns - 1) + 1 : stride] += dy @ weight[:, :, u, v]
            return padded
        """,
        "the padding cut off at the wrong end": """
            for u, v in np.ndindex(kernel, kernel):
                rows_seen = slice(u, u + stride * (rows - 1) + 1, stride)
                padded[:, rows_seen, v : v + stride * (columns - 1) + 1 : stride] += dy @ weight[:, :, u, v]
            return padded[:, :height, :width]
        """,
    },
}
