//! What is trained, in numbers: one row per kind of module, and the share of the whole.

use std::fmt;

use crate::target::{Adapted, is_embedding};

/// Ends of the two factors' keys, on linear layers and on an embedding.
const PAIRS: [[&str; 2]; 2] =
    [[".lora_A.weight", ".lora_B.weight"], [".lora_embedding_A", ".lora_embedding_B"]];
/// What other tensors are called in a row, by the ends of their keys.
const NAMES: [(&str, &str); 4] = [
    (".lora_magnitude_vector", ".magnitude"),
    (".lora_B.bias", ".lora_bias"),
    (".base_layer.bias", ".bias"),
    (".token_adapter.trainable_tokens_delta", ".tokens"),
];

/// Trainable parameters beside all parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterReport {
    /// One row per kind of module, in the order of the model.
    pub rows: Vec<ParameterRow>,
    /// Parameters that are trained.
    pub trainable: u64,
    /// All parameters: those of the base, and the trained ones that come on top.
    pub total: u64,
}

/// The modules of one name, rank and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterRow {
    /// Last part of their paths: `q_proj`, or `q_proj.bias` for a bias trained by itself.
    pub module: String,
    /// How many there are.
    pub count: usize,
    /// Rank of the adapter; `None` where the module is trained whole.
    pub rank: Option<usize>,
    /// Shape of the base weight: `[d_in, d_out]` of a linear layer.
    pub shape: Vec<usize>,
    /// Trained parameters of all of them together.
    pub trainable: u64,
}

impl ParameterReport {
    /// The report of training these tensors, by key and shape: `….q_proj.lora_A.weight` `[d_in, rank]`
    /// and `….q_proj.lora_B.weight` `[rank, d_out]` for a low-rank pair, of which A may be missing where B is
    /// trained alone; any other key for a tensor trained by itself. Where the base is not what is trained,
    /// the tensors come on top of its parameters, copies of its modules too, as PEFT counts.
    pub fn new(base_parameters: u64, trains_base: bool, tensors: &[(String, Vec<usize>)]) -> Self {
        let mut rows = Vec::new();
        let shape_of =
            |key: String| tensors.iter().find(|(it, _)| *it == key).map(|(_, shape)| shape);
        for (key, shape) in tensors {
            let count = parameters(shape);
            let a = PAIRS.iter().find_map(|[a, b]| Some((key.strip_suffix(a)?, b)));
            let b = PAIRS.iter().find_map(|[a, b]| Some((key.strip_suffix(b)?, a)));
            if let Some((path, of_b)) = a {
                let b = shape_of(format!("{path}{of_b}"));
                let (d_in, rank) = (shape.first().copied(), shape.last().copied());
                let d_out = b.and_then(|shape| shape.last().copied());
                let layer = [d_in, d_out].into_iter().flatten().collect();
                add(&mut rows, path, rank, layer, count + b.map_or(0, |shape| parameters(shape)));
            } else if let Some((path, of_a)) = b {
                if shape_of(format!("{path}{of_a}")).is_none() {
                    let path = format!("{path}.lora_B");
                    add(&mut rows, &path, shape.first().copied(), shape.clone(), count);
                }
            } else {
                let named = NAMES
                    .iter()
                    .find_map(|(end, name)| Some(format!("{}{name}", key.strip_suffix(end)?)));
                let path =
                    named.unwrap_or_else(|| key.strip_suffix(".weight").unwrap_or(key).to_owned());
                add(&mut rows, &path, None, shape.clone(), count);
            }
        }
        let trainable = rows.iter().map(|row| row.trainable).sum();
        let on_top = if trains_base { 0 } else { trainable };
        Self { rows, trainable, total: base_parameters + on_top }
    }

    /// The report of an adapter before it is there: the adapted layers, and the modules that are trained
    /// whole by path and shape, beside a base of so many parameters.
    pub fn of_adapter(
        base_parameters: u64,
        adapted: &[Adapted],
        saved: &[(String, Vec<usize>)],
    ) -> Self {
        let mut tensors = Vec::new();
        for Adapted { path, d_in, d_out, rank, .. } in adapted {
            let [a, b] = PAIRS[usize::from(is_embedding(path))];
            tensors.push((format!("{path}{a}"), vec![*d_in, *rank]));
            tensors.push((format!("{path}{b}"), vec![*rank, *d_out]));
        }
        tensors.extend_from_slice(saved);
        Self::new(base_parameters, false, &tensors)
    }
}

impl fmt::Display for ParameterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["module", "count", "shape", "rank", "trainable"].map(str::to_owned);
        let mut lines = vec![heading];
        for row in &self.rows {
            let sides: Vec<String> = row.shape.iter().map(ToString::to_string).collect();
            lines.push([
                row.module.clone(),
                row.count.to_string(),
                sides.join(" × "),
                row.rank.map_or_else(|| "full".to_owned(), |rank| rank.to_string()),
                thousands(row.trainable),
            ]);
        }
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
        };
        let [first, second, third, fourth, fifth] = [0, 1, 2, 3, 4].map(width);
        for [module, count, shape, rank, trainable] in &lines {
            writeln!(
                f,
                "{module:<first$}  {count:>second$}  {shape:<third$}  {rank:>fourth$}  \
                 {trainable:>fifth$}"
            )?;
        }
        let percent = 100.0 * self.trainable as f64 / self.total.max(1) as f64;
        write!(
            f,
            "trainable {} of {} parameters ({percent:.2} %)",
            thousands(self.trainable),
            thousands(self.total)
        )
    }
}

/// The number with a comma after every third digit: 4,884,480.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn parameters(shape: &[usize]) -> u64 {
    shape.iter().map(|&side| side as u64).product()
}

fn add(
    rows: &mut Vec<ParameterRow>,
    path: &str,
    rank: Option<usize>,
    shape: Vec<usize>,
    trainable: u64,
) {
    let ends = NAMES.iter().map(|(_, name)| *name).chain([".lora_B"]);
    let stem = ends.into_iter().find_map(|end| path.strip_suffix(end)).unwrap_or(path);
    let module = &path[stem.rfind('.').map_or(0, |dot| dot + 1)..];
    let same =
        |row: &&mut ParameterRow| row.module == module && row.rank == rank && row.shape == shape;
    match rows.iter_mut().find(same) {
        Some(row) => {
            row.count += 1;
            row.trainable += trainable;
        }
        None => {
            rows.push(ParameterRow { module: module.to_owned(), count: 1, rank, shape, trainable });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(path: &str, d_in: usize, d_out: usize, rank: usize) -> Adapted {
        Adapted { path: path.to_owned(), d_in, d_out, rank, alpha: 1.0, scaling: 1.0 }
    }

    #[test]
    fn smollm2_counts_as_peft_counts_it() {
        let mut modules = Vec::new();
        for layer in 0..30 {
            for (name, d_in, d_out) in [
                ("q_proj", 576, 576),
                ("k_proj", 576, 192),
                ("v_proj", 576, 192),
                ("o_proj", 576, 576),
                ("gate_proj", 576, 1536),
                ("up_proj", 576, 1536),
                ("down_proj", 1536, 576),
            ] {
                modules.push(adapted(&format!("layers.{layer}.{name}"), d_in, d_out, 16));
            }
        }
        let report = ParameterReport::of_adapter(134_515_584, &modules, &[]);
        insta::assert_snapshot!(report, @"
        module     count  shape       rank  trainable
        q_proj        30  576 × 576     16    552,960
        k_proj        30  576 × 192     16    368,640
        v_proj        30  576 × 192     16    368,640
        o_proj        30  576 × 576     16    552,960
        gate_proj     30  576 × 1536    16  1,013,760
        up_proj       30  576 × 1536    16  1,013,760
        down_proj     30  1536 × 576    16  1,013,760
        trainable 4,884,480 of 139,400,064 parameters (3.50 %)
        ");
    }

    #[test]
    fn other_ranks_and_saved_modules_have_their_own_rows() {
        let modules = [adapted("a.q_proj", 64, 64, 4), adapted("b.q_proj", 64, 64, 8)];
        let saved = [("lm_head".to_owned(), vec![256, 64]), ("model.norm".to_owned(), vec![64])];
        let report = ParameterReport::of_adapter(1000, &modules, &saved);
        insta::assert_snapshot!(report, @"
        module   count  shape     rank  trainable
        q_proj       1  64 × 64      4        512
        q_proj       1  64 × 64      8      1,024
        lm_head      1  256 × 64  full     16,384
        norm         1  64        full         64
        trainable 17,984 of 18,984 parameters (94.73 %)
        ");
    }

    #[test]
    fn the_base_itself_is_trained_whole() {
        let tensors = [
            ("model.layers.0.self_attn.q_proj.weight".to_owned(), vec![10, 8]),
            ("model.layers.0.self_attn.q_proj.bias".to_owned(), vec![8]),
            ("model.layers.1.self_attn.q_proj.weight".to_owned(), vec![10, 8]),
            ("norm".to_owned(), vec![12]),
        ];
        insta::assert_snapshot!(ParameterReport::new(180, true, &tensors), @"
        module       count  shape   rank  trainable
        q_proj           2  10 × 8  full        160
        q_proj.bias      1  8       full          8
        norm             1  12      full         12
        trainable 180 of 180 parameters (100.00 %)
        ");
    }

    #[test]
    fn what_methods_add_has_rows_of_its_own() {
        let tensors = [
            ("model.embed_tokens.lora_embedding_A", vec![256, 4]),
            ("model.embed_tokens.lora_embedding_B", vec![4, 64]),
            ("model.layers.0.q_proj.lora_A.weight", vec![64, 4]),
            ("model.layers.0.q_proj.lora_B.weight", vec![4, 32]),
            ("model.layers.0.q_proj.lora_magnitude_vector", vec![32]),
            ("model.layers.0.q_proj.base_layer.bias", vec![32]),
            ("model.layers.1.q_proj.bias", vec![32]),
            ("model.layers.1.k_proj.lora_B.weight", vec![4, 32]),
            ("model.layers.1.k_proj.lora_B.bias", vec![32]),
            ("model.embed_tokens.token_adapter.trainable_tokens_delta", vec![3, 64]),
        ];
        let tensors = tensors.map(|(key, shape)| (key.to_owned(), shape));
        insta::assert_snapshot!(ParameterReport::new(10_000, false, &tensors), @"
        module               count  shape     rank  trainable
        embed_tokens             1  256 × 64     4      1,280
        q_proj                   1  64 × 32      4        384
        q_proj.magnitude         1  32        full         32
        q_proj.bias              2  32        full         64
        k_proj.lora_B            1  4 × 32       4        128
        k_proj.lora_bias         1  32        full         32
        embed_tokens.tokens      1  3 × 64    full        192
        trainable 2,112 of 12,112 parameters (17.44 %)
        ");
    }

    #[test]
    fn thousands_are_grouped() {
        let grouped = [0, 999, 1000, 134_515_584].map(thousands);
        assert_eq!(grouped, ["0", "999", "1,000", "134,515,584"]);
    }
}
