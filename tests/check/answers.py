"""One way to fill in core/EXERCISES.md."""

import numpy as np


def complement_distribution(v):
    T = v.sum(axis=-1, keepdims=True)
    weights = T - v + 1
    P = weights / weights.sum(axis=-1, keepdims=True)
    return T, weights, P


def complement_loss(z, v, alpha):
    p = softmax(z)
    T, _, P = complement_distribution(v)
    w = v / T
    kl = (P * np.log(P / p)).sum(axis=-1)
    contrast = -(w * np.log(1 - p)).sum(axis=-1)
    loss = np.mean(alpha * kl + (1 - alpha) * contrast)
    a = w * p / (1 - p)
    others = a.sum(axis=-1, keepdims=True) - a
    dz = (alpha * (p - P) + (1 - alpha) * (w * p - others * p)) / len(z)
    return p, P, w, kl, contrast, loss, a, dz


def log_one_minus_p(z, i):
    rows = np.arange(len(z))
    rest = z.copy()
    rest[rows, i] = -np.inf
    total, others = log_sum_exp(z), log_sum_exp(rest)
    log_rest = others - total
    p = np.exp(z[rows, i] - total)
    dz = -p[:, None] * np.exp(rest - others[:, None])
    dz[rows, i] = p
    return total, others, log_rest, dz


def log_sum_exp(z):
    largest = z.max(axis=-1)
    return largest + np.log(np.exp(z - largest[:, None]).sum(axis=-1))


def lora_linear_backward(dy, x, W, A, B, s):
    u = x @ A.T
    dB = s * dy.T @ u
    du = s * (dy @ B)
    dA = du.T @ x
    dx = dy @ W + du @ A
    return u, dB, du, dA, dx


def rms_norm(x, gamma, eps):
    rms = np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    n = x / rms
    y = gamma * n
    return rms, n, y


def rms_norm_backward(dy, x, gamma, eps):
    rms, n, _ = rms_norm(x, gamma, eps)
    dn = gamma * dy
    dx = (dn - n * (dn * n).mean(axis=-1, keepdims=True)) / rms
    dgamma = (dy * n).sum(axis=0)
    return dn, dx, dgamma


def softmax(score):
    e = np.exp(score - score.max(axis=-1, keepdims=True))
    att = e / e.sum(axis=-1, keepdims=True)
    return att


def softmax_backward(datt, att):
    inner = (att * datt).sum(axis=-1, keepdims=True)
    dscore = att * (datt - inner)
    return inner, dscore


def rope_angles(positions, hd, theta):
    angle = positions[:, None, None] * theta ** (-np.arange(0, hd, 2) / hd)
    return angle


def rope(x, cos, sin):
    x1, x2 = np.split(x, 2, axis=-1)
    y = np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return y


def rope_backward(dy, cos, sin):
    dx = rope(dy, cos, -sin)
    return dx


def attend(q, k, val, seen):
    att = softmax(np.where(seen, q @ k.T / np.sqrt(q.shape[-1]), -np.inf))
    y = att @ val
    return att, y


def attend_backward(dy, q, k, val, seen):
    att, _ = attend(q, k, val, seen)
    dval = att.T @ dy
    datt = dy @ val.T
    _, dscore = softmax_backward(datt, att)
    dq = dscore @ k / np.sqrt(q.shape[-1])
    dk = dscore.T @ q / np.sqrt(q.shape[-1])
    return dval, datt, dscore, dq, dk


def attention(q, k, val, segments):
    y = np.zeros_like(q)
    G = q.shape[1] // k.shape[1]
    for own, keys in segments:
        seen = keys <= np.arange(own.start, own.stop)[:, None]
        for h in range(q.shape[1]):
            _, y[own, h] = attend(q[own, h], k[keys, h // G], val[keys, h // G], seen)
    return y


def attention_backward(dy, q, k, val, segments):
    dq, dk, dval = np.zeros_like(q), np.zeros_like(k), np.zeros_like(val)
    G = q.shape[1] // k.shape[1]
    for own, keys in segments:
        seen = keys <= np.arange(own.start, own.stop)[:, None]
        for h in range(q.shape[1]):
            inputs = q[own, h], k[keys, h // G], val[keys, h // G]
            of_val, _, _, dq[own, h], of_k = attend_backward(dy[own, h], *inputs, seen)
            dk[keys, h // G] += of_k
            dval[keys, h // G] += of_val
    return dq, dk, dval


def block(x, layer, cos, sin, segments, eps):
    hd = 2 * cos.shape[-1]
    *_, x1 = rms_norm(x, layer["input_layernorm"], eps)
    q = rope((x1 @ layer["q_proj"].T).reshape(len(x), -1, hd), cos, sin)
    k = rope((x1 @ layer["k_proj"].T).reshape(len(x), -1, hd), cos, sin)
    val = (x1 @ layer["v_proj"].T).reshape(len(x), -1, hd)
    o = attention(q, k, val, segments).reshape(len(x), -1)
    mid = x + o @ layer["o_proj"].T
    *_, x2 = rms_norm(mid, layer["post_attention_layernorm"], eps)
    gate = x2 @ layer["gate_proj"].T
    up = x2 @ layer["up_proj"].T
    h = gate / (1 + np.exp(-gate)) * up
    y = mid + h @ layer["down_proj"].T
    return x1, q, k, val, o, mid, x2, gate, up, h, y


def block_backward(dy, x, layer, cos, sin, segments, eps):
    _, q, k, val, _, mid, _, gate, up, _, _ = block(x, layer, cos, sin, segments, eps)
    sig = 1 / (1 + np.exp(-gate))
    dh = dy @ layer["down_proj"]
    dgate = dh * up * (sig + gate * sig * (1 - sig))
    dup = dh * gate * sig
    dx2 = dgate @ layer["gate_proj"] + dup @ layer["up_proj"]
    dmid = dy + rms_norm_backward(dx2, mid, layer["post_attention_layernorm"], eps)[1]
    do = dmid @ layer["o_proj"]
    dq, dk, dval = attention_backward(do.reshape(q.shape), q, k, val, segments)
    dx1 = rope_backward(dq, cos, sin).reshape(len(x), -1) @ layer["q_proj"]
    dx1 = dx1 + rope_backward(dk, cos, sin).reshape(len(x), -1) @ layer["k_proj"]
    dx1 = dx1 + dval.reshape(len(x), -1) @ layer["v_proj"]
    dx = dmid + rms_norm_backward(dx1, x, layer["input_layernorm"], eps)[1]
    return dh, dgate, dup, dx2, dmid, do, dq, dk, dval, dx1, dx


def adamw(theta, g, mean, square, n, lr, weight_decay):
    new_mean = 0.9 * mean + 0.1 * g
    new_square = 0.999 * square + 0.001 * g**2
    mean_hat = new_mean / (1 - 0.9**n)
    square_hat = new_square / (1 - 0.999**n)
    new_theta = theta - lr * weight_decay * theta - lr * mean_hat / (np.sqrt(square_hat) + 1e-8)
    return new_mean, new_square, mean_hat, square_hat, new_theta


def training_step(ids, rows, v, E, gamma, A, B, layer, cos, sin, segments, eps, s, alpha, lr):
    merged = layer | {"q_proj": layer["q_proj"] + s * B @ A}
    x = E[ids]
    x1, *_, y = block(x, merged, cos, sin, segments, eps)
    hidden = rms_norm(y[rows], gamma, eps)[2]
    z = hidden @ E.T
    *_, loss, _, dz = complement_loss(z, v, alpha)
    dhidden = dz @ E
    dy = np.zeros_like(y)
    np.add.at(dy, rows, rms_norm_backward(dhidden, y[rows], gamma, eps)[1])
    *_, dq, _, _, _, _ = block_backward(dy, x, merged, cos, sin, segments, eps)
    dq_out = rope_backward(dq, cos, sin).reshape(len(x), -1)
    _, dB, _, dA, _ = lora_linear_backward(dq_out, x1, layer["q_proj"], A, B, s)
    new_A, new_B = (adamw(M, g, 0 * M, 0 * M, 1, lr, 0)[-1] for M, g in ((A, dA), (B, dB)))
    return x, y, hidden, z, loss, dz, dhidden, dy, dq_out, dA, dB, new_A, new_B
