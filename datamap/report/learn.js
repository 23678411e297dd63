"use strict";
// The review learns: what datamap/detection/review.py does, repeated in the page. `found` holds values (rows x width),
// group, groups, offset and the settings; `decided` is 1 wrong, 0 right, NaN undecided. Both maximise the same strictly
// concave function by Newton's method, so they find the same weights.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const softplus = (x) => (x > 0 ? x + Math.log1p(Math.exp(-x)) : Math.log1p(Math.exp(x)));
const dot = (a, b) => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
};

/** One row of the design: a column per group, each feature, and each feature within each group. */
function design(found, row) {
  const { width, groups, values, group } = found;
  const made = new Float64Array(groups + width + (groups > 1 ? groups * width : 0));
  made[group[row]] = found.group_spread;
  for (let b = 0; b < width; b++) {
    const value = values[row * width + b];
    made[groups + b] = value;
    if (groups > 1) made[groups + width + group[row] * width + b] = value / Math.sqrt(groups);
  }
  return made;
}

/** design(found, row) times weights, of every row, without the many zeros. */
function weighted(found, weights) {
  const { width, groups, values, group } = found;
  const own = [];
  for (let g = 0; g < groups; g++) {
    own.push(Float64Array.from({ length: width }, (_, b) =>
      weights[groups + b] + (groups > 1 ? weights[groups + width + g * width + b] / Math.sqrt(groups) : 0)));
  }
  return Float64Array.from(group, (g, row) => {
    let sum = found.group_spread * weights[g];
    for (let b = 0; b < width; b++) sum += values[row * width + b] * own[g][b];
    return sum;
  });
}

/** x of A x = b for a symmetric positive definite A (rows of Float64Array, overwritten), by Cholesky. */
function solve(A, b) {
  const n = b.length, x = Float64Array.from(b);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = A[i][j];
      for (let k = 0; k < j; k++) sum -= A[i][k] * A[j][k];
      A[i][j] = i === j ? Math.sqrt(sum) : sum / A[j][j];
    }
  }
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < i; k++) x[i] -= A[i][k] * x[k];
    x[i] /= A[i][i];
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) x[i] -= A[k][i] * x[k];
    x[i] /= A[i][i];
  }
  return x;
}

/** x of (I + R' diag(w) R) x = g. With fewer rows than weights by the matrix of the rows (Woodbury): some decisions
 * against hundreds of weights. `products` are R R', made once. */
function newtonStep(rows, w, g, products) {
  const n = rows.length, p = g.length;
  if (n <= p) {
    const s = w.map(Math.sqrt);
    const A = products.map((line, i) => line.map((value, j) => s[i] * value * s[j] + (i === j ? 1 : 0)));
    const inner = solve(A, Float64Array.from(rows, (row, i) => s[i] * dot(row, g)));
    const x = Float64Array.from(g);
    rows.forEach((row, i) => { for (let j = 0; j < p; j++) x[j] -= row[j] * s[i] * inner[i]; });
    return x;
  }
  const A = Array.from({ length: p }, (_, i) => { const line = new Float64Array(p); line[i] = 1; return line; });
  rows.forEach((row, k) => {
    for (let i = 0; i < p; i++) {
      if (row[i] !== 0) for (let j = 0; j <= i; j++) A[i][j] += w[k] * row[i] * row[j];
    }
  });
  return solve(A, g);
}

/** Weights that maximise the log-likelihood of the decisions less half the sum of their squares. */
function learn(rows, offset, wrong, settings) {
  const p = rows.length ? rows[0].length : 0;
  const products = rows.length <= p ? rows.map((row) => Float64Array.from(rows, (other) => dot(row, other))) : null;
  const heightOf = (weights) => rows.reduce((sum, row, i) => {
    const z = offset[i] + dot(row, weights);
    return sum + wrong[i] * z - softplus(z);
  }, 0) - dot(weights, weights) / 2;
  let weights = new Float64Array(p), height = heightOf(weights);
  for (let step = 0; step < settings.steps; step++) {
    const chances = rows.map((row, i) => sigmoid(offset[i] + dot(row, weights)));
    const gradient = weights.map((weight) => -weight);
    rows.forEach((row, i) => { for (let j = 0; j < p; j++) gradient[j] += row[j] * (wrong[i] - chances[i]); });
    if (gradient.every((value) => Math.abs(value) < settings.precision)) break;
    const direction = newtonStep(rows, chances.map((chance) => chance * (1 - chance)), gradient, products);
    const floor = height - settings.rounding * (1 + Math.abs(height));
    let size = 1, reached, tried;
    for (;;) {
      tried = weights.map((weight, j) => weight + size * direction[j]);
      reached = heightOf(tried);
      if (!(reached < floor && size > settings.smallest_step)) break;
      size /= 2;
    }
    weights = tried;
    height = reached;
  }
  return weights;
}

/** The probability that each example is wrong after what was decided; without decisions it is suspicion. */
function review(found, decided) {
  const known = [...decided.keys()].filter((row) => !Number.isNaN(decided[row]));
  if (!known.length) return found.offset.map(sigmoid);
  const weights = learn(known.map((row) => design(found, row)), known.map((row) => found.offset[row]),
    known.map((row) => decided[row]), found);
  const moved = weighted(found, weights);
  return found.offset.map((value, row) => sigmoid(value + moved[row]));
}

if (typeof module !== "undefined") module.exports = { design, learn, review, solve, weighted };
