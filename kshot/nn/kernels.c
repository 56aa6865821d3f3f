/* Loops over images that torch needs several passes for: statistics, pooling and their derivatives (channels-last), and
 * the second derivative of a batch norm (either layout).
 *
 * Compiled and called by kernels.py, which says what each function means. An image batch is y[n][h][w][c]; `place` and
 * everything "pooled" are [n][h/2][w/2][c], one entry per whole 2x2 block (an odd last row or column has none). Every
 * inner loop runs over the channels, which are contiguous, so that the compiler vectorises it without being allowed to
 * reorder a sum. Sums are taken over two rows of an image in T and over those in double.
 */
#ifndef T
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(f) JOIN(f, SUFFIX)
typedef long long size;
typedef unsigned char byte;
#define LANES 16

#define T float
#define WIDE int /* an integer as wide as T, so that both are vectorised alike */
#define SUFFIX float
#include "kernels.c"
#undef T
#undef WIDE
#undef SUFFIX

#define T double
#define WIDE long long
#define SUFFIX double
#include "kernels.c"
#else

/* The pixels of a 2x2 block at rows r, r + 1 and columns s, s + 1: number q, where it is inside the image. */
#define BLOCK(q)                                                        \
    if (r + (q) / 2 >= h || s + (q) % 2 >= w) continue;                 \
    const size pixel = ((i * h + r + (q) / 2) * w + s + (q) % 2) * c;

/* sums[0][k] = sum of y - pilot, sums[1][k] = sum of its square; pooled: the value of each block whose sign[k] * value is
 * largest, place: which of the four it is. `row` is room for 2c numbers. */
void NAME(pool)(const T *restrict y, size n, size h, size w, size c, const T *restrict pilot, const T *restrict sign,
                T *restrict pooled, byte *restrict place, double *restrict sums, T *restrict row) {
    double *restrict first = sums, *restrict second = sums + c;
    T *restrict a = row, *restrict b = row + c;
    for (size k = 0; k < c; k++) first[k] = second[k] = 0;
    for (size i = 0; i < n; i++)
        for (size r = 0; r < h; r += 2) {
            const T *top = y + (i * h + r) * w * c;
            const size pixels = (r + 1 < h ? 2 : 1) * w;
            for (size k = 0; k < c; k++) a[k] = b[k] = 0;
            for (size p = 0; p < pixels; p++) {
                const T *restrict v = top + p * c;
                for (size k = 0; k < c; k++) {
                    const T d = v[k] - pilot[k];
                    a[k] += d;
                    b[k] += d * d;
                }
            }
            for (size k = 0; k < c; k++) {
                first[k] += a[k];
                second[k] += b[k];
            }
            if (r + 1 == h) continue;
            for (size s = 0; s + 1 < w; s += 2) {
                const T *restrict v0 = top + s * c, *restrict v1 = v0 + c, *restrict v2 = v0 + w * c,
                        *restrict v3 = v2 + c;
                const size o = ((i * (h / 2) + r / 2) * (w / 2) + s / 2) * c;
                T *restrict out = pooled + o;
                byte *restrict at = place + o;
                for (size k = 0; k < c; k++) {
                    const T g = sign[k], x1 = v1[k] * g, x2 = v2[k] * g, x3 = v3[k] * g;
                    T best = v0[k] * g;
                    WIDE q = 0;
                    q = x1 > best ? 1 : q, best = x1 > best ? x1 : best;
                    q = x2 > best ? 2 : q, best = x2 > best ? x2 : best;
                    q = x3 > best ? 3 : q, best = x3 > best ? x3 : best;
                    out[k] = best * g;
                    at[k] = (byte)q;
                }
            }
        }
}

/* out = a + b * y, plus d where `place` says: the derivative of `pool`. */
void NAME(spread)(const T *restrict y, size n, size h, size w, size c, const byte *restrict place, const T *restrict d,
                  const T *restrict a, const T *restrict b, T *restrict out) {
    for (size i = 0; i < n; i++)
        for (size r = 0; r < h; r += 2)
            for (size s = 0; s < w; s += 2) {
                const int whole = r + 1 < h && s + 1 < w;
                const size o = ((i * (h / 2) + r / 2) * (w / 2) + s / 2) * c;
                const byte *restrict at = place + o;
                const T *restrict own = d + o;
                for (int q = 0; q < 4; q++) {
                    BLOCK(q)
                    const T *restrict v = y + pixel;
                    T *restrict z = out + pixel;
                    if (whole)
                        for (size k = 0; k < c; k++) z[k] = a[k] + b[k] * v[k] + (at[k] == q ? own[k] : 0);
                    else
                        for (size k = 0; k < c; k++) z[k] = a[k] + b[k] * v[k];
                }
            }
}

/* The derivative of `spread` in the direction g: sums[0] = sum of g, sums[1] = sum of g * y, d = g at the places,
 * out = b * g. `row` is room for 2c numbers. */
void NAME(collect)(const T *restrict y, size n, size h, size w, size c, const byte *restrict place, const T *restrict g,
                   const T *restrict b, T *restrict d, T *restrict out, double *restrict sums, T *restrict row) {
    double *restrict first = sums, *restrict second = sums + c;
    T *restrict plain = row, *restrict times = row + c;
    for (size k = 0; k < c; k++) first[k] = second[k] = 0;
    for (size i = 0; i < n; i++)
        for (size r = 0; r < h; r += 2) {
            for (size k = 0; k < c; k++) plain[k] = times[k] = 0;
            for (size s = 0; s < w; s += 2) {
                const int whole = r + 1 < h && s + 1 < w;
                const size o = ((i * (h / 2) + r / 2) * (w / 2) + s / 2) * c;
                const byte *restrict at = place + o;
                T *restrict own = d + o;
                for (int q = 0; q < 4; q++) {
                    BLOCK(q)
                    const T *restrict v = y + pixel, *restrict e = g + pixel;
                    T *restrict z = out + pixel;
                    for (size k = 0; k < c; k++) {
                        plain[k] += e[k];
                        times[k] += e[k] * v[k];
                        z[k] = b[k] * e[k];
                    }
                    if (whole)
                        for (size k = 0; k < c; k++) own[k] = at[k] == q ? e[k] : (q ? own[k] : 0);
                }
            }
            for (size k = 0; k < c; k++) {
                first[k] += plain[k];
                second[k] += times[k];
            }
        }
}

/* Sums for the second derivative of a batch norm, of which h is the direction and g the gradient that came in:
 * sums[0] = sum of h, sums[1] = sum of h * (y - mean), sums[2] = sum of h * g, by channel. Images of p pixels: planes
 * [n][c][p] where `last` is 0, [n][p][c] where it is 1. `row` is room for 3c numbers. */
void NAME(bend_sums)(const T *restrict y, size n, size p, size c, size last, const T *restrict mean,
                     const T *restrict h, const T *restrict g, double *restrict sums, T *restrict row) {
    double *restrict s0 = sums, *restrict s1 = sums + c, *restrict s2 = sums + 2 * c;
    T *restrict a = row, *restrict b = row + c, *restrict d = row + 2 * c;
    for (size k = 0; k < c; k++) s0[k] = s1[k] = s2[k] = 0;
    for (size i = 0; i < n; i++) {
        if (last) {
            for (size k = 0; k < c; k++) a[k] = b[k] = d[k] = 0;
            for (size j = 0; j < p; j++) {
                const size o = (i * p + j) * c;
                const T *restrict v = y + o, *restrict u = h + o, *restrict e = g + o;
                for (size k = 0; k < c; k++) {
                    a[k] += u[k];
                    b[k] += u[k] * (v[k] - mean[k]);
                    d[k] += u[k] * e[k];
                }
            }
            for (size k = 0; k < c; k++) s0[k] += a[k], s1[k] += b[k], s2[k] += d[k];
            continue;
        }
        for (size k = 0; k < c; k++) {
            const size o = (i * c + k) * p;
            const T *restrict v = y + o, *restrict u = h + o, *restrict e = g + o;
            const T m = mean[k];
            T la[LANES] = {0}, lb[LANES] = {0}, ld[LANES] = {0}; /* so that the sums may be vectorised */
            size j = 0;
            for (; j + LANES <= p; j += LANES)
                for (int l = 0; l < LANES; l++) {
                    la[l] += u[j + l];
                    lb[l] += u[j + l] * (v[j + l] - m);
                    ld[l] += u[j + l] * e[j + l];
                }
            for (; j < p; j++) {
                la[0] += u[j];
                lb[0] += u[j] * (v[j] - m);
                ld[0] += u[j] * e[j];
            }
            for (int l = 0; l < LANES; l++) s0[k] += la[l], s1[k] += lb[l], s2[k] += ld[l];
        }
    }
}

/* of_y = f[0] + f[1] * (y - mean) + f[2] * g + f[3] * h and of_g = f[4] + f[5] * (y - mean) + f[6] * h, by channel. */
void NAME(bend)(const T *restrict y, size n, size p, size c, size last, const T *restrict mean, const T *restrict h,
                const T *restrict g, const T *restrict f, T *restrict of_y, T *restrict of_g) {
    if (last) {
        for (size j = 0; j < n * p; j++) {
            const T *restrict v = y + j * c, *restrict u = h + j * c, *restrict e = g + j * c;
            T *restrict z = of_y + j * c, *restrict w = of_g + j * c;
            for (size k = 0; k < c; k++) {
                const T x = v[k] - mean[k];
                z[k] = f[k] + f[c + k] * x + f[2 * c + k] * e[k] + f[3 * c + k] * u[k];
                w[k] = f[4 * c + k] + f[5 * c + k] * x + f[6 * c + k] * u[k];
            }
        }
        return;
    }
    for (size i = 0; i < n; i++)
        for (size k = 0; k < c; k++) {
            const size o = (i * c + k) * p;
            const T *restrict v = y + o, *restrict u = h + o, *restrict e = g + o;
            T *restrict z = of_y + o, *restrict w = of_g + o;
            const T m = mean[k], f0 = f[k], f1 = f[c + k], f2 = f[2 * c + k], f3 = f[3 * c + k], f4 = f[4 * c + k],
                    f5 = f[5 * c + k], f6 = f[6 * c + k];
            for (size j = 0; j < p; j++) {
                const T x = v[j] - m;
                z[j] = f0 + f1 * x + f2 * e[j] + f3 * u[j];
                w[j] = f4 + f5 * x + f6 * u[j];
            }
        }
}

#undef BLOCK
#endif
