//! Numbers in words, and the rules of the grammar that need a computed result.

use anyhow::Result;

use crate::grammar::Grammar;

const LARGEST: usize = 100;

/// Adds the rows `first ; second ; result` in words, then the same in figures, for every small sum,
/// difference and product; `_many` are the rows in which all three are at least two.
pub(crate) fn add_rules(grammar: &mut Grammar) -> Result<()> {
    for first in 0..=20 {
        for second in 0..=20 {
            add_row(grammar, "sum", first, second, first + second)?;
            if second <= first {
                add_row(grammar, "difference", first, second, first - second)?;
            }
            if first <= 10 && second <= 10 {
                add_row(grammar, "product", first, second, first * second)?;
            }
        }
    }
    for number in 0..=40 {
        add_row(grammar, "count", number, number + 1, number + 2)?;
    }
    for number in 1..=30 {
        grammar.add("degrees", &number.to_string())?;
    }
    Ok(())
}

fn add_row(
    grammar: &mut Grammar,
    rule: &str,
    first: usize,
    second: usize,
    result: usize,
) -> Result<()> {
    let numbers = [first, second, result];
    let fields: Vec<String> =
        numbers.map(in_words).into_iter().chain(numbers.map(|number| number.to_string())).collect();
    let line = fields.join(" ; ");
    grammar.add(rule, &line)?;
    if numbers.iter().all(|&number| number >= 2) {
        grammar.add(&format!("{rule}_many"), &line)?;
    }
    Ok(())
}

/// # Panics
///
/// Above one hundred.
fn in_words(number: usize) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] =
        ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    assert!(number <= LARGEST, "{number} has no words here");
    match (number / 10, number % 10) {
        (10, _) => "one hundred".to_owned(),
        (0 | 1, _) => SMALL[number].to_owned(),
        (tens, 0) => TENS[tens].to_owned(),
        (tens, ones) => format!("{}-{}", TENS[tens], SMALL[ones]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::Names;
    use crate::random::Random;

    #[test]
    fn numbers_have_words() {
        let words = [0, 7, 13, 20, 21, 40, 99, 100].map(in_words);
        assert_eq!(
            words.join(" "),
            "zero seven thirteen twenty twenty-one forty ninety-nine one hundred"
        );
    }

    #[test]
    fn rows_are_right() {
        let mut grammar = Grammar::default();
        add_rules(&mut grammar).unwrap();
        let mut random = Random::new(1);
        type Operation = fn(i64, i64) -> i64;
        let operations: [(&str, Operation); 3] =
            [("sum", |a, b| a + b), ("difference", |a, b| a - b), ("product", |a, b| a * b)];
        for (rule, operation) in operations {
            for index in 0..grammar.len(rule).unwrap() {
                let row = grammar.row(rule, index, &mut random, &mut Names::new()).unwrap();
                let figures: Vec<i64> =
                    row[3..].iter().map(|figure| figure.parse().unwrap()).collect();
                assert_eq!(operation(figures[0], figures[1]), figures[2], "{rule} {row:?}");
            }
        }
    }
}
