//! Epoch by epoch: the one wiring that all custom operators share. A kernel sees each complete epoch once, in order,
//! with all that its inputs sent at it, and what it gives leaves at that epoch.
//!
//! ```text
//!  inputs ──► stash by epoch ──► frontier moves to G: kernel(e) for each epoch e < G that the clock told ──► outputs at e
//!  clock  ──┘                                                                                    ──► frontier G
//! ```
//!
//! * The *clock* tells which epochs there are: a stream of one [`Feed`] an epoch on every worker, data or not. So time
//!   passes without ticks: an operator with timers knows `now` only from its epoch. (A frontier alone could not tell: while
//!   rows of epoch F are on their way between workers it stands at F, and F − 1 is no epoch that was ever cut.)
//! * A feed carries all that enters at its epoch, shared by all operators of all workers: nothing of it is copied.
//! * The operator's frontier is the least of its open inputs' frontiers; a closed input holds nothing back.
//! * No epoch is processed twice, none out of order, and nothing happens while the frontier stands.
//! * All inputs closed: what is stashed is processed, then the operator finishes.
//! * State: the epochs in flight. Cost: some ten nanoseconds an input and epoch; data are moved, never copied.
//! * The output frontier promises: everything at epochs before it has been given.
//!
//! # Examples
//!
//! An operator that sums each epoch and shows when there was nothing to sum:
//!
//! ```
//! use marea_model::Progress;
//! use marea_operators::epochs::{Clock, EpochOperator, EpochStream, Feed};
//! use std::sync::Arc;
//! use timely::dataflow::channels::pact::Pipeline;
//!
//! fn sums<'scope>(clock: Clock<'scope>, numbers: EpochStream<'scope, u64>) -> EpochStream<'scope, (u64, u64)> {
//!     let mut operator = EpochOperator::new("sums", clock);
//!     let numbers = operator.input(numbers, Pipeline);
//!     let (sums, stream) = operator.output();
//!     operator.build(move |epoch, _| sums.give((epoch, numbers.drain().sum())));
//!     stream
//! }
//! # use timely::dataflow::operators::{Input, Inspect, Probe};
//! # timely::execute_directly(|worker| {
//! #     let (mut clock, mut input, probe) = worker.dataflow(|scope| {
//! #         let (clock, clock_stream) = scope.new_input::<Vec<Arc<Feed>>>();
//! #         let (input, stream) = scope.new_input::<Vec<u64>>();
//! #         let expected = [(0, 3), (9, 0)];
//! #         let sums = sums(clock_stream, stream).inspect(move |sum| assert!(expected.contains(sum), "{sum:?}"));
//! #         (clock, input, sums.probe().0)
//! #     });
//! #     input.send(1);
//! #     input.send(2);
//! #     for epoch in [0, 9] {
//! #         clock.advance_to(epoch);
//! #         input.advance_to(epoch);
//! #         clock.send(Feed::at(Progress::START));
//! #         clock.advance_to(epoch + 1);
//! #         input.advance_to(epoch + 1);
//! #         worker.step_while(|| probe.less_than(&(epoch + 1)));
//! #     }
//! # });
//! ```

use marea_model::{AccountSnapshot, ConfigUpdate, Epoch, Progress, Sealed, TickSlice};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use timely::communication::Pull;
use timely::dataflow::Stream;
use timely::dataflow::channels::Message;
use timely::dataflow::channels::pact::{ParallelizationContract, Pipeline};
use timely::dataflow::channels::pushers;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::InputHandleCore;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

/// A stream of `D` at epochs.
pub type EpochStream<'scope, D> = Stream<'scope, Epoch, Vec<D>>;

/// The stream of one feed an epoch.
pub type Clock<'scope> = EpochStream<'scope, Arc<Feed>>;

/// All that enters the dataflow at an epoch.
#[derive(Clone, Debug)]
pub struct Feed {
    /// How far the input has come at its end.
    pub progress: Progress,
    /// Ticks, in order.
    pub ticks: Vec<TickSlice>,
    /// Changes of the live configuration, in order.
    pub config: Vec<ConfigUpdate>,
    /// Snapshots of accounts.
    pub accounts: Vec<AccountSnapshot>,
    /// Whether metrics are wanted at its end.
    pub metrics: bool,
    /// What has sealed before the first epoch of this process, where it goes on where another was killed. The ticks of
    /// this epoch have been judged before: they are counted nowhere, and none of them is refused once more.
    pub sealed: Option<Arc<Sealed>>,
}

impl Feed {
    /// Time has passed, and nothing else.
    pub fn at(progress: Progress) -> Arc<Feed> {
        Arc::new(Feed {
            progress,
            ticks: Vec::new(),
            config: Vec::new(),
            accounts: Vec::new(),
            metrics: true,
            sealed: None,
        })
    }
}

/// One input, as the kernel's closure reads it: what was sent at the epoch that is being processed.
#[derive(Debug)]
pub struct Input<D> {
    current: Rc<RefCell<Vec<Vec<D>>>>,
}

impl<D> Input<D> {
    /// All that was sent at this epoch, in the order of arrival (which differs from run to run where several workers
    /// send). What is not drained is dropped at the epoch's end.
    pub fn drain(&self) -> impl Iterator<Item = D> + use<D> {
        self.take().into_iter()
    }

    /// [`Input::drain`] as one vector; without copying where it came in one piece.
    pub fn take(&self) -> Vec<D> {
        let mut pieces = self.current.borrow_mut();
        match pieces.len() {
            0 => Vec::new(),
            1 => pieces.pop().unwrap_or_default(),
            _ => pieces.drain(..).flatten().collect(),
        }
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
    /// By epoch, and as they came.
    messages: VecDeque<(Epoch, Vec<D>)>,
    current: Rc<RefCell<Vec<Vec<D>>>>,
}

impl<D: 'static, P: Pull<Message<Epoch, Vec<D>>>> Stash for StashOf<D, P> {
    fn receive(&mut self) {
        let messages = &mut self.messages;
        self.handle.for_each(|capability, data| {
            // A message under no time at all belongs to no epoch; nobody here sends one.
            let Some(epoch) = capability.least().copied() else { return };
            // One sender's come in order; several workers' nearly so.
            let later = messages.iter().rev().take_while(|(other, _)| *other > epoch).count();
            messages.insert(messages.len() - later, (epoch, std::mem::take(data)));
        });
    }

    fn first(&self) -> Option<Epoch> {
        self.messages.front().map(|(epoch, _)| *epoch)
    }

    fn show(&mut self, epoch: Epoch) {
        let mut current = self.current.borrow_mut();
        current.clear();
        while let Some((_, data)) = self.messages.pop_front_if(|(of, _)| *of == epoch) {
            current.push(data);
        }
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
    clock: Rc<RefCell<Vec<Vec<Arc<Feed>>>>>,
    stashes: Vec<Box<dyn Stash>>,
    emits: Vec<Box<dyn Emit>>,
}

impl<'scope> EpochOperator<'scope> {
    /// An operator without inputs and outputs yet. The clock must reach every worker by itself: it is not routed.
    pub fn new(name: &str, clock: Clock<'scope>) -> Self {
        let mut operator = EpochOperator {
            builder: OperatorBuilder::new(name.to_owned(), clock.scope()),
            clock: Rc::default(),
            stashes: Vec::new(),
            emits: Vec::new(),
        };
        operator.clock = operator.input(clock, Pipeline).current;
        operator
    }

    /// Adds an input, routed by `pact`.
    pub fn input<D, P>(&mut self, stream: EpochStream<'scope, D>, pact: P) -> Input<D>
    where
        D: 'static,
        P: ParallelizationContract<Epoch, Vec<D>>,
    {
        let handle = self.builder.new_input(stream, pact);
        let current = Rc::new(RefCell::new(Vec::new()));
        self.stashes.push(Box::new(StashOf { handle, messages: VecDeque::new(), current: Rc::clone(&current) }));
        Input { current }
    }

    /// Adds an output: where the kernel gives, and the stream that this becomes.
    pub fn output<D: 'static>(&mut self) -> (Output<D>, EpochStream<'scope, D>) {
        let (output, stream) = self.builder.new_output();
        let buffer = Rc::new(RefCell::new(Vec::new()));
        self.emits.push(Box::new(EmitOf { output, buffer: Rc::clone(&buffer) }));
        (Output { buffer }, stream)
    }

    /// Builds the operator around `kernel`, which is called once for each complete epoch, with what entered at it.
    pub fn build(self, mut kernel: impl FnMut(Epoch, &Feed) + 'static) {
        let EpochOperator { builder, clock, mut stashes, mut emits } = self;
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
                while let Some(epoch) = stashes.iter().filter_map(|s| s.first()).min() {
                    if frontier.is_some_and(|f| epoch >= f) {
                        break;
                    }
                    for stash in &mut stashes {
                        stash.show(epoch);
                    }
                    // Whoever sends data at an epoch tells it to the clock; else the data would be lost, silently.
                    let feed = clock.borrow_mut().pop().and_then(|mut feeds| feeds.pop());
                    kernel(epoch, &feed.expect("the clock tells every epoch with data"));
                    for (emit, capability) in emits.iter_mut().zip(&mut capabilities) {
                        capability.downgrade(&epoch);
                        emit.emit(capability);
                    }
                }
                match frontier {
                    Some(frontier) => {
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
    type Shown = (Vec<(Epoch, String)>, Vec<(Epoch, Epoch)>);

    /// A kernel that shows what it is called with, and has a timer: it says so once `due` is reached.
    fn show<'scope>(
        clock: Clock<'scope>,
        numbers: EpochStream<'scope, u64>,
        words: EpochStream<'scope, String>,
        due: Epoch,
    ) -> (EpochStream<'scope, String>, EpochStream<'scope, Epoch>) {
        let mut operator = EpochOperator::new("show", clock);
        let numbers = operator.input(numbers, Exchange::new(|n: &u64| *n));
        let (shown, shown_stream) = operator.output();
        let words = operator.input(words, Pipeline);
        let (fired, fired_stream) = operator.output();
        let mut timer = Some(due);
        operator.build(move |epoch, _| {
            let sum: u64 = numbers.drain().sum();
            shown.give(format!("{epoch}: {sum} {}", words.take().concat()));
            if let Some(due) = timer.take_if(|due| epoch >= *due) {
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

    /// Feeds worker 0 with `numbers` and `words` of each epoch, all workers with the clock; gives what this worker showed
    /// and when its timer fired.
    fn run(worker: &mut timely::worker::Worker, epochs: &[(Epoch, Vec<u64>, &str)], due: Epoch) -> Shown {
        let (seen, fired) = (Seen::default(), Rc::default());
        let (mut clock, mut numbers, mut words, probe) = worker.dataflow(|scope| {
            let (clock, clock_stream) = scope.new_input::<Vec<Arc<Feed>>>();
            let (numbers, number_stream) = scope.new_input::<Vec<u64>>();
            let (words, word_stream) = scope.new_input::<Vec<String>>();
            let (shown, timer) = show(clock_stream, number_stream, word_stream, due);
            watch(timer, &fired);
            (clock, numbers, words, watch(shown, &seen).probe().0)
        });
        for (epoch, n, w) in epochs {
            clock.advance_to(*epoch);
            numbers.advance_to(*epoch);
            words.advance_to(*epoch);
            clock.send(Feed::at(Progress::START));
            if worker.index() == 0 {
                n.iter().for_each(|n| numbers.send(*n));
                words.send((*w).to_owned());
            }
            clock.advance_to(epoch + 1);
            numbers.advance_to(epoch + 1);
            words.advance_to(epoch + 1);
            worker.step_while(|| probe.less_than(&(epoch + 1)));
        }
        drop((clock, numbers, words));
        worker.step_while(|| !probe.done());
        (seen.take(), fired.take())
    }

    #[test]
    fn each_complete_epoch_once_in_order_also_without_data() {
        timely::execute_directly(|worker| {
            let epochs =
                [(3, vec![1, 2], "a"), (8, vec![3], ""), (20, vec![], ""), (30, vec![], ""), (31, vec![4], "b")];
            let (seen, fired) = run(worker, &epochs, 25);
            let seen: Vec<(Epoch, &str)> = seen.iter().map(|(e, s)| (*e, s.as_str())).collect();
            assert_eq!(seen, [(3, "3: 3 a"), (8, "8: 3 "), (20, "20: 0 "), (30, "30: 0 "), (31, "31: 4 b")]);
            // Time passes, nothing is sent: the timer fires, once.
            assert_eq!(fired, [(30, 25)]);
        });
    }

    #[test]
    fn workers_see_the_same_epochs_while_records_are_on_their_way() {
        let results = timely::execute(timely::Config::process(2), |worker| {
            let epochs: Vec<(Epoch, Vec<u64>, &str)> = (1..200).map(|e| (e * 7, (0..e * 5).collect(), "")).collect();
            run(worker, &epochs, 701)
        })
        .unwrap();
        let seen: Vec<_> = results.join().into_iter().map(Result::unwrap).collect();
        for (shown, fired) in &seen {
            let epochs: Vec<Epoch> = shown.iter().map(|(e, _)| *e).collect();
            assert_eq!(epochs, (1..200).map(|e| e * 7).collect::<Vec<_>>());
            assert_eq!(*fired, [(707, 701)]);
        }
        for (i, n) in (1_u64..200).map(|e| e * 5).enumerate() {
            let sums: u64 =
                seen.iter().map(|(shown, _)| shown[i].1.split(' ').nth(1).unwrap().parse::<u64>().unwrap()).sum();
            assert_eq!(sums, n * (n - 1) / 2);
        }
    }
}
