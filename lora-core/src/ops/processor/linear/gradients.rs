//! Gradients of weights and of low-rank factors.

use lora_kernels::filled;
use lora_kernels::matmul::{Left, Patch, Product, Right, thin_product, thin_width};

use super::super::{Flat, Format, tensor};
use super::{Joined, One, Update};

impl Joined {
    /// `dW = xᵀ·dY` of each layer, where it is wanted.
    pub(super) fn weight_gradients<T: Format>(&self, x: &[T], dy: &[T]) -> Vec<Option<Flat>> {
        if !self.layers.iter().any(|layer| layer.wanted) {
            return self.layers.iter().map(|_| None).collect();
        }
        let n = x.len() / self.d_in;
        let left = Left::turned(x, [n, self.d_in], self.d_in);
        let each = self.layers.iter().map(|layer| {
            layer.wanted.then(|| {
                let shape = [n, layer.d_out];
                let patch = Patch::straight(&dy[layer.place[0]..], shape, [0, 0]);
                let patch = Patch { steps: [self.d_out, 1], ..patch };
                let right = Right::new(shape, vec![patch]);
                let dw: Vec<f32> = filled(self.d_in * layer.d_out, |out| {
                    Product::new(&left, &right).write(out);
                });
                tensor(dw, &[self.d_in, layer.d_out])
            })
        });
        each.collect()
    }

    /// dA and dB of the updates of each layer, where they are wanted.
    pub(super) fn factor_gradients<T: Format>(
        &self,
        x: &[T],
        dy: &[T],
        narrow: &[f32],
        upper_narrow: &[f32],
    ) -> Vec<Vec<Flat>> {
        let mut all: Vec<Vec<Flat>> = self.layers.iter().map(|_| Vec::new()).collect();
        let (n, width) = (x.len() / self.d_in, thin_width(self.rank));
        // Those of A in one product, since all read the same input: `[ranks, d_in]`.
        let mut of_a = Vec::new();
        if self.undropped().any(|(_, update)| update.wanted[0]) {
            of_a = filled(self.rank * self.d_in, |out| {
                let left = (upper_narrow, width);
                thin_product(left, (x, self.d_in), [n, self.rank, self.d_in], out);
            });
        }
        for (layer, gradients) in self.layers.iter().zip(&mut all) {
            for update in &layer.low_rank {
                self.gradients_of(layer, update, [&of_a, narrow, upper_narrow], [x, dy], gradients);
            }
        }
        all
    }

    /// Those of one update.
    fn gradients_of<T: Format>(
        &self,
        layer: &One,
        update: &Update,
        [of_a, narrow, upper_narrow]: [&[f32]; 3],
        [x, dy]: [&[T]; 2],
        gradients: &mut Vec<Flat>,
    ) {
        let (n, width, rank) = (x.len() / self.d_in, thin_width(self.rank), update.rank);
        if update.wanted[0] {
            let own: Vec<f32>;
            let rows = match update.dropout {
                None => &of_a[update.place * self.d_in..][..rank * self.d_in],
                Some(dropout) => {
                    let x = self.dropped(dropout, x);
                    let left = (&upper_narrow[update.place..], width);
                    own = filled(rank * self.d_in, |out| {
                        thin_product(left, (&x, self.d_in), [n, rank, self.d_in], out);
                    });
                    &own[..]
                }
            };
            let mut da = Vec::with_capacity(rank * self.d_in);
            for column in 0..self.d_in {
                da.extend((0..rank).map(|row| rows[row * self.d_in + column]));
            }
            gradients.push(tensor(da, &[self.d_in, rank]));
        }
        if update.wanted[1] {
            let left = (&narrow[update.place..], width);
            let right = (&dy[layer.place[0]..], self.d_out);
            let db: Vec<f32> = filled(rank * layer.d_out, |out| {
                thin_product(left, right, [n, rank, layer.d_out], out);
            });
            gradients.push(tensor(db, &[rank, layer.d_out]));
        }
    }
}
