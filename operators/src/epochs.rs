//! Epoch by epoch: the one wiring that all custom operators share. A kernel sees each complete epoch once, in order,
//! with all that its inputs sent at it, and what it gives leaves at that epoch.
//!
//! ```text
//!  inputs ──► stash by epoch ──► frontier moves from F to G: kernel(e) for each stashed e in [F, G),
//!                                and for G − 1 even if nothing was sent ──► outputs at e ──► frontier G
//! ```
//!
//! * The operator's frontier is the least of its open inputs' frontiers; a closed input holds nothing back.
//! * `G − 1` without data is how time passes: an operator with timers knows `now` only from its epoch. Whoever drives
//!   the dataflow therefore advances inputs straight from `E + 1` to `F + 1` (data of epoch `F` are sent at `F`, and the
//!   worker does not step between), so that only epochs that were cut come by.
//! * No epoch is processed twice, none out of order, and nothing happens while the frontier stands.
//! * All inputs closed: what is stashed is processed, then the operator finishes. The epoch that only a frontier could
//!   have told of is unknown then, so inputs are closed after the last epoch is complete.
//! * State: the epochs in flight. Cost: one map entry per input and epoch; data are moved, never copied.
//! * The output frontier promises: everything at epochs before it has been given.
//!
//! # Examples
//!
//! An operator that sums each epoch and shows when there was nothing to sum:
//!
//! ```
//! use marea_operators::epochs::{EpochOperator, EpochStream};
//! use timely::dataflow::channels::pact::Pipeline;
//!
//! fn sums<'scope>(numbers: EpochStream<'scope, u64>) -> EpochStream<'scope, (u64, u64)> {
//!     let mut operator = EpochOperator::new("sums", numbers.scope());
//!     let numbers = operator.input(numbers, Pipeline);
//!     let (sums, stream) = operator.output();
//!     operator.build(move |epoch| sums.give((epoch, numbers.drain().sum())));
//!     stream
//! }
//! # use timely::dataflow::operators::{Input, Inspect, Probe};
//! # timely::execute_directly(|worker| {
//! #     let (mut input, probe) = worker.dataflow(|scope| {
//! #         let (input, stream) = scope.new_input::<Vec<u64>>();
//! #         let expected = [(0, 3), (9, 0)];
//! #         (input, sums(stream).inspect(move |sum| assert!(expected.contains(sum), "{sum:?}")).probe().0)
//! #     });
//! #     input.send(1);
//! #     input.send(2);
//! #     for next in [1, 10] {
//! #         input.advance_to(next);
//! #         worker.step_while(|| probe.less_than(&next));
//! #     }
//! # });
//! ```

use marea_model::Epoch;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use timely::communication::Pull;
use timely::dataflow::channels::Message;
use timely::dataflow::channels::pact::ParallelizationContract;
use timely::dataflow::channels::pushers;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::InputHandleCore;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};

/// A stream of `D` at epochs.
pub type EpochStream<'scope, D> = Stream<'scope, Epoch, Vec<D>>;

/// One input, as the kernel's closure reads it: what was sent at the epoch that is being processed.
#[derive(Debug)]
pub struct Input<D> {
    current: Rc<RefCell<Vec<Vec<D>>>>,
}

impl<D> Input<D> {
    /// All that was sent at this epoch, in the order of arrival (which differs from run to run where several workers
    /// send). What is not drained is dropped at the epoch's end.
    pub fn drain(&self) -> impl Iterator<Item = D> + use<D> {
        self.current.take().into_iter().flatten()
    }

    /// [`Input::drain`] as one vector; without copying where it came in one piece.
    pub fn take(&self) -> Vec<D> {
        let mut pieces = self.current.take();
        if pieces.len() == 1 { pieces.remove(0) } else { pieces.into_iter().flatten().collect() }
    }
}

/// One output, as the kernel's closure writes it: all that is given leaves at the epoch that is being processed.
#[derive(Debug)]
pub struct Output<D> {
    buffer: Rc<RefCell<Vec<D>>>,
}

impl<D> Output<D> {
    /// Gives one.
    pub fn give(&self, data: D) {
        self.buffer.borrow_mut().push(data);
    }

    /// Gives several; a whole vector is moved, not copied, if it is the first.
    pub fn give_vec(&self, mut data: Vec<D>) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() { *buffer = data } else { buffer.append(&mut data) }
    }
}

/// The input side of the driver, whatever the type of its data.
trait Stash {
    /// Takes in what has arrived.
    fn receive(&mut self);
    /// The first epoch that has data.
    fn first(&self) -> Option<Epoch>;
    /// Shows the data of an epoch to the kernel.
    fn show(&mut self, epoch: Epoch);
}

struct StashOf<D: 'static, P: Pull<Message<Epoch, Vec<D>>>> {
    handle: InputHandleCore<Epoch, Vec<D>, P>,
    epochs: BTreeMap<Epoch, Vec<Vec<D>>>,
    current: Rc<RefCell<Vec<Vec<D>>>>,
}

impl<D: 'static, P: Pull<Message<Epoch, Vec<D>>>> Stash for StashOf<D, P> {
    fn receive(&mut self) {
        let epochs = &mut self.epochs;
        self.handle.for_each(|capability, data| {
            // A message under no time at all belongs to no epoch; nobody here sends one.
            if let Some(epoch) = capability.least() {
                epochs.entry(*epoch).or_default().push(std::mem::take(data));
            }
        });
    }

    fn first(&self) -> Option<Epoch> {
        self.epochs.first_key_value().map(|(epoch, _)| *epoch)
    }

    fn show(&mut self, epoch: Epoch) {
        *self.current.borrow_mut() = self.epochs.remove(&epoch).unwrap_or_default();
    }
}

/// The output side of the driver, whatever the type of its data.
trait Emit {
    /// Sends what the kernel gave.
    fn emit(&mut self, capability: &Capability<Epoch>);
}

struct EmitOf<D: 'static> {
    output: pushers::Output<Epoch, Vec<D>>,
    buffer: Rc<RefCell<Vec<D>>>,
}

impl<D: 'static> Emit for EmitOf<D> {
    fn emit(&mut self, capability: &Capability<Epoch>) {
        let mut buffer = self.buffer.borrow_mut();
        if !buffer.is_empty() {
            self.output.activate().give(capability, &mut *buffer);
            buffer.clear();
        }
    }
}

/// Builds one operator: name its inputs and outputs, then [`EpochOperator::build`] it around a kernel.
pub struct EpochOperator<'scope> {
    builder: OperatorBuilder<'scope, Epoch>,
    stashes: Vec<Box<dyn Stash>>,
    emits: Vec<Box<dyn Emit>>,
}

impl<'scope> EpochOperator<'scope> {
    /// An operator without inputs and outputs yet.
    pub fn new(name: &str, scope: Scope<'scope, Epoch>) -> Self {
        EpochOperator { builder: OperatorBuilder::new(name.to_owned(), scope), stashes: Vec::new(), emits: Vec::new() }
    }

    /// Adds an input, routed by `pact`.
    pub fn input<D, P>(&mut self, stream: EpochStream<'scope, D>, pact: P) -> Input<D>
    where
        D: 'static,
        P: ParallelizationContract<Epoch, Vec<D>>,
    {
        let handle = self.builder.new_input(stream, pact);
        let current = Rc::new(RefCell::new(Vec::new()));
        self.stashes.push(Box::new(StashOf { handle, epochs: BTreeMap::new(), current: Rc::clone(&current) }));
        Input { current }
    }

    /// Adds an output: where the kernel gives, and the stream that this becomes.
    pub fn output<D: 'static>(&mut self) -> (Output<D>, EpochStream<'scope, D>) {
        let (output, stream) = self.builder.new_output();
        let buffer = Rc::new(RefCell::new(Vec::new()));
        self.emits.push(Box::new(EmitOf { output, buffer: Rc::clone(&buffer) }));
        (Output { buffer }, stream)
    }

    /// Builds the operator around `kernel`, which is called once for each complete epoch.
    pub fn build(self, mut kernel: impl FnMut(Epoch) + 'static) {
        let EpochOperator { builder, mut stashes, mut emits } = self;
        builder.build(move |mut capabilities| {
            let mut reached: Epoch = 0;
            move |frontiers| {
                for stash in &mut stashes {
                    stash.receive();
                }
                // What has arrived is complete below the frontiers, which were read before it.
                let frontier = frontiers.iter().filter_map(|f| f.frontier().first().copied()).min();
                if frontier == Some(reached) {
                    return;
                }
                let complete = |epoch: &Epoch| frontier.is_none_or(|f| *epoch < f);
                let mut next = stashes.iter().filter_map(|s| s.first()).min();
                let mut process = |epoch: Epoch| {
                    for stash in &mut stashes {
                        stash.show(epoch);
                    }
                    kernel(epoch);
                    for (emit, capability) in emits.iter_mut().zip(&mut capabilities) {
                        capability.downgrade(&epoch);
                        emit.emit(capability);
                    }
                    stashes.iter().filter_map(|s| s.first()).min()
                };
                let mut last = None;
                while let Some(epoch) = next.filter(complete) {
                    next = process(epoch);
                    last = Some(epoch);
                }
                match frontier {
                    Some(frontier) => {
                        if last != Some(frontier - 1) {
                            process(frontier - 1);
                        }
                        for capability in &mut capabilities {
                            capability.downgrade(&frontier);
                        }
                        reached = frontier;
                    }
                    None => capabilities.clear(),
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use timely::dataflow::channels::pact::{Exchange, Pipeline};
    use timely::dataflow::operators::{Input as _, Inspect, Probe};

    type Seen = Rc<RefCell<Vec<(Epoch, String)>>>;

    /// A kernel that shows what it is called with, and has a timer: it says so once `due` is reached.
    fn show<'scope>(
        numbers: EpochStream<'scope, u64>,
        words: EpochStream<'scope, String>,
        due: Epoch,
    ) -> (EpochStream<'scope, String>, EpochStream<'scope, Epoch>) {
        let mut operator = EpochOperator::new("show", numbers.scope());
        let numbers = operator.input(numbers, Exchange::new(|n: &u64| *n));
        let (shown, shown_stream) = operator.output();
        let words = operator.input(words, Pipeline);
        let (fired, fired_stream) = operator.output();
        let mut timer = Some(due);
        operator.build(move |epoch| {
            let total: u64 = numbers.drain().sum();
            shown.give_vec(vec![format!("{epoch}: {total} {}", words.take().join("+"))]);
            if let Some(due) = timer.take_if(|due| *due <= epoch) {
                fired.give(due);
            }
        });
        (shown_stream, fired_stream)
    }

    /// Writes down what leaves, with the epoch at which it leaves.
    fn watch<'scope, D: Clone + 'static>(
        stream: EpochStream<'scope, D>,
        seen: &Rc<RefCell<Vec<(Epoch, D)>>>,
    ) -> EpochStream<'scope, D> {
        let seen = Rc::clone(seen);
        stream.inspect_core(move |event| {
            if let Ok((stamp, rows)) = event {
                let epoch = *stamp.least().unwrap();
                seen.borrow_mut().extend(rows.iter().map(|row| (epoch, row.clone())));
            }
        })
    }

    #[test]
    fn each_complete_epoch_once_in_order_and_the_last_even_without_data() {
        timely::execute_directly(|worker| {
            let (seen, fired) = (Seen::default(), Rc::default());
            let (mut numbers, mut words, probe) = worker.dataflow(|scope| {
                let (numbers, number_stream) = scope.new_input::<Vec<u64>>();
                let (words, word_stream) = scope.new_input::<Vec<String>>();
                let (shown, timer) = show(number_stream, word_stream, 25);
                watch(timer, &fired);
                (numbers, words, watch(shown, &seen).probe().0)
            });
            let expect = |expected: &[(Epoch, &str)]| {
                let shown = seen.take();
                let shown: Vec<(Epoch, &str)> = shown.iter().map(|(e, s)| (*e, s.as_str())).collect();
                assert_eq!(shown, expected);
            };

            numbers.send(1);
            numbers.send(2);
            numbers.advance_to(8);
            numbers.send(3);
            numbers.advance_to(11);
            for _ in 0..8 {
                worker.step();
            }
            expect(&[]); // the other input has not said that anything is complete

            words.send("a".to_owned());
            words.advance_to(11);
            worker.step_while(|| probe.less_than(&11));
            expect(&[(0, "0: 3 a"), (8, "8: 3 "), (10, "10: 0 ")]);

            // Only one of the two moves: the epoch is not complete.
            numbers.send(4);
            numbers.advance_to(21);
            for _ in 0..8 {
                worker.step();
            }
            expect(&[]);
            words.advance_to(21);
            worker.step_while(|| probe.less_than(&21));
            expect(&[(11, "11: 4 "), (20, "20: 0 ")]);
            assert_eq!(*fired.borrow(), vec![]);

            // Time passes, nothing is sent: the timer fires, once.
            numbers.advance_to(31);
            words.advance_to(31);
            worker.step_while(|| probe.less_than(&31));
            expect(&[(30, "30: 0 ")]);
            assert_eq!(*fired.borrow(), vec![(30, 25)]);

            // A closed input holds nothing back; closing the last one finishes what is stashed and adds nothing.
            drop(words);
            numbers.advance_to(41);
            worker.step_while(|| probe.less_than(&41));
            expect(&[(40, "40: 0 ")]);
            numbers.send(5);
            drop(numbers);
            worker.step_while(|| !probe.done());
            expect(&[(41, "41: 5 ")]);
        });
    }

    #[test]
    fn workers_agree() {
        let results = timely::execute(timely::Config::process(2), |worker| {
            let seen = Seen::default();
            let (mut numbers, mut words, probe) = worker.dataflow(|scope| {
                let (numbers, number_stream) = scope.new_input::<Vec<u64>>();
                let (words, word_stream) = scope.new_input::<Vec<String>>();
                let shown = show(number_stream, word_stream, 0).0;
                (numbers, words, watch(shown, &seen).probe().0)
            });
            for next in [5, 9] {
                if worker.index() == 0 {
                    (0..1000).for_each(|n| numbers.send(n));
                }
                numbers.advance_to(next);
                words.advance_to(next);
                worker.step_while(|| probe.less_than(&next));
            }
            seen.take()
        })
        .unwrap();
        let mut sums: Vec<u64> = Vec::new();
        for seen in results.join() {
            for (_, shown) in seen.unwrap() {
                sums.push(shown.split(' ').nth(1).unwrap().parse().unwrap());
            }
        }
        sums.sort_unstable();
        assert_eq!(sums.iter().sum::<u64>(), 2 * 499_500);
        assert!(sums.contains(&249_500) && sums.contains(&250_000), "{sums:?}");
    }
}
