//! A result with a backward pass of its own, as a node of Burn's graph.

use std::fmt;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;

use crate::profile::timed;

/// Numbers of the processor's backend.
pub(super) type Flat = FloatTensor<Flex>;
/// The same in a graph.
type Tracked = FloatTensor<Autodiff<Flex>>;
/// From the gradient of a result to those of its parents, in their order.
type Pull = dyn Fn(Flat) -> Vec<Flat> + Send + Sync;

/// The tracked ones among the inputs of an operation.
#[derive(Default)]
pub(super) struct Parents(Vec<Tracked>);

impl Parents {
    /// Adds an input where a gradient is wanted of it; says whether it is.
    pub(super) fn add<const D: usize>(&mut self, input: &Tensor<D>) -> bool {
        let tracked = input.is_tracked();
        if tracked {
            self.0.extend(input.clone().try_into_primitive::<Autodiff<Flex>>().ok());
        }
        tracked
    }

    /// `output` as a tensor; `backward` is what a profile calls its backward pass. `pull` gives one gradient for each input that was added, in their order.
    ///
    /// # Panics
    /// With more tracked inputs than any operation has.
    pub(super) fn node<const D: usize>(
        self,
        backward: &'static str,
        output: Flat,
        pull: impl Fn(Flat) -> Vec<Flat> + Send + Sync + 'static,
    ) -> Tensor<D> {
        let parents = self.0;
        macro_rules! of_any {
            ($($count:literal)*) => {
                match parents.len() {
                    0 => return Tensor::from_primitive::<Flex>(output),
                    $($count => attach::<$count>(output, parents, Arc::new(move |upper| timed(backward, || pull(upper)))),)*
                    more => panic!("an operation with {more} tracked inputs"),
                }
            };
        }
        let output = of_any!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
        Tensor::from_primitive::<Autodiff<Flex>>(output)
    }
}

fn attach<const N: usize>(output: Flat, parents: Vec<Tracked>, pull: Arc<Pull>) -> Tracked {
    let guards: Vec<_> = parents.iter().map(Tracked::node).collect();
    let Ok(guards) = guards.try_into() else { panic!("parents are as many as were counted") };
    let prepared = Backward::<Flex, N>::prepare::<NoCheckpointing>(Step, guards);
    match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(Function(pull), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

#[derive(Clone)]
struct Function(Arc<Pull>);

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Function")
    }
}

#[derive(Debug)]
struct Step;

impl<const N: usize> Backward<Flex, N> for Step {
    type State = Function;

    fn backward(self, ops: Ops<Function, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let upper = gradients.consume::<Flex>(&ops.node);
        let found = (ops.state.0)(upper);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                gradients.register::<Flex>(parent.id, gradient);
            }
        }
    }
}
