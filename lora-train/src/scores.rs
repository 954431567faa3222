//! How good an encoder's answers are, as GLUE measures it (Wang et al. 2018, <https://arxiv.org/abs/1804.07461>):
//! F1 and Matthews' correlation of labels, Pearson's and Spearman's correlation of numbers.

/// Measures beside loss and accuracy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LabelScores {
    /// Of labels.
    Classes {
        /// F1 of the second of two labels; of more, the mean over those that occur.
        f1: f64,
        /// Matthews' correlation coefficient.
        matthews: f64,
    },
    /// Of numbers.
    Numbers {
        /// Pearson's correlation.
        pearson: f64,
        /// Spearman's: Pearson's of the ranks.
        spearman: f64,
    },
}

impl LabelScores {
    /// The measures with their names.
    pub fn named(&self) -> [(&'static str, f64); 2] {
        match *self {
            Self::Classes { f1, matthews } => [("f1", f1), ("matthews", matthews)],
            Self::Numbers { pearson, spearman } => [("pearson", pearson), ("spearman", spearman)],
        }
    }
}

/// Scores of the labels found, out of `labels`, against those expected.
///
/// With counts C[k, l] of texts with label k taken for l: F1 of k is `2·C[k,k] / (Σ C[k,·] + Σ C[·,k])`; Matthews'
/// coefficient is `(n·Σ C[k,k] − Σ t·p) / √((n² − Σ p²)·(n² − Σ t²))` with t and p the sums of rows and columns
/// (Gorodkin 2004). Both are 0 where they divide by 0.
pub fn class_scores(found: &[usize], expected: &[usize], labels: usize) -> LabelScores {
    let count =
        |list: &[usize], label: usize| list.iter().filter(|it| **it == label).count() as f64;
    let right = |label: usize| {
        found.iter().zip(expected).filter(|(a, b)| **a == label && **b == label).count() as f64
    };
    let share = |a: f64, b: f64| if b == 0.0 { 0.0 } else { a / b };
    let f1_of =
        |label: usize| share(2.0 * right(label), count(found, label) + count(expected, label));
    let f1 = if labels == 2 {
        f1_of(1)
    } else {
        let occurs = |label: &usize| count(found, *label) + count(expected, *label) > 0.0;
        let each: Vec<f64> = (0..labels).filter(occurs).map(f1_of).collect();
        share(each.iter().sum(), each.len() as f64)
    };
    let n = found.len() as f64;
    let sum = |of: &dyn Fn(usize) -> f64| (0..labels).map(of).sum::<f64>();
    let all_right = sum(&right);
    let both = sum(&|label| count(found, label) * count(expected, label));
    let squares = |list: &[usize]| n * n - sum(&|label| count(list, label).powi(2));
    let matthews = share(n * all_right - both, (squares(found) * squares(expected)).sqrt());
    LabelScores::Classes { f1, matthews }
}

/// Scores of the numbers found against those expected; NaN where either are all alike.
pub fn number_scores(found: &[f64], expected: &[f64]) -> LabelScores {
    let pearson = correlation(found, expected);
    LabelScores::Numbers { pearson, spearman: correlation(&ranks(found), &ranks(expected)) }
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sum = |of: &dyn Fn(f64, f64) -> f64| {
        a.iter().zip(b).map(|(a, b)| of(a - mean_a, b - mean_b)).sum::<f64>()
    };
    sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
}

/// Ranks from 1; equal numbers share the mean of theirs.
fn ranks(numbers: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
    let mut ranks = vec![0.0; numbers.len()];
    let mut start = 0;
    for equal in order.chunk_by(|a, b| numbers[*a] == numbers[*b]) {
        let rank = (2 * start + equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|index| ranks[*index] = rank);
        start += equal.len();
    }
    ranks
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::Value;

    use super::*;

    /// What scikit-learn and scipy say (tests/fixtures/make_scores.py).
    #[test]
    fn scores_are_those_of_scikit_learn_and_scipy() {
        let cases: Value =
            serde_json::from_str(include_str!("../../tests/fixtures/scores.json")).unwrap();
        let near = |found: f64, expected: &Value, what: &str| {
            let expected = expected.as_f64().unwrap();
            assert!((found - expected).abs() < 1e-12, "{what}: {found}, not {expected}");
        };
        for case in cases["classes"].as_array().unwrap() {
            let list = |key: &str| -> Vec<usize> {
                let list = case[key].as_array().unwrap();
                list.iter().map(|label| label.as_u64().unwrap() as usize).collect()
            };
            let labels = case["labels"].as_u64().unwrap() as usize;
            let scores = class_scores(&list("found"), &list("expected"), labels);
            for (name, found) in scores.named() {
                near(found, &case[name], name);
            }
        }
        for case in cases["numbers"].as_array().unwrap() {
            let list = |key: &str| -> Vec<f64> {
                case[key].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect()
            };
            for (name, found) in number_scores(&list("found"), &list("expected")).named() {
                near(found, &case[name], name);
            }
        }
    }

    #[test]
    fn what_can_not_be_divided_is_said() {
        let LabelScores::Numbers { pearson, .. } = number_scores(&[1.0, 1.0], &[1.0, 2.0]) else {
            panic!("numbers have correlations");
        };
        assert!(pearson.is_nan());
        let none = class_scores(&[0, 0], &[0, 0], 2);
        assert_eq!(none, LabelScores::Classes { f1: 0.0, matthews: 0.0 });
    }
}
