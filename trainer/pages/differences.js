// Two texts, and what of each the other does not have: [[text, differs], …] for both, by their longest common
// subsequence of words, signs and spaces.
const MOST = 1500; // of these on either side: else all behind the first difference and before the last one differs
const wordsOf = text => text.match(/\s+|\w+|[^\s\w]/gu) || [];
function differences(one, other) {
  const a = wordsOf(one), b = wordsOf(other);
  let start = 0, ends = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (ends < Math.min(a.length, b.length) - start && a[a.length - 1 - ends] === b[b.length - 1 - ends]) ends++;
  const n = a.length - start - ends, m = b.length - start - ends;
  const inA = a.map((_, i) => i >= start && i < start + n), inB = b.map((_, j) => j >= start && j < start + m);
  if (n && m && n <= MOST && m <= MOST) {
    const common = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1)); // of what is left from i and j on
    for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--)
      common[i][j] = a[start + i] === b[start + j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    for (let i = 0, j = 0; i < n && j < m;) {
      if (a[start + i] === b[start + j]) inA[start + i++] = inB[start + j++] = false;
      else if (common[i + 1][j] >= common[i][j + 1]) i++; else j++;
    }
  }
  return [a.map((word, i) => [word, inA[i]]), b.map((word, j) => [word, inB[j]])];
}
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter(child => child !== null));
  return made;
}
// Data become text nodes and nothing else: markup in them stays text.
const marked = words => words.map(([word, differs]) => differs ? element("mark", {}, word) : word);
