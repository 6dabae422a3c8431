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
//! * **Operators that need no records of other workers run as one** operator of the dataflow, one after the other, an epoch
//!   at a time: what one gives is moved to the next. Another begins only where records change workers
//!   ([`EpochOperator::routed`]): on a single worker nowhere. Every operator of a dataflow,
//!   and every channel between two, costs a microsecond an epoch, and each waits for the frontier of the one before.
//! * The operator's frontier is the least of its open inputs' frontiers; a closed input holds nothing back.
//! * No epoch is processed twice, none out of order, and nothing happens while the frontier stands.
//! * All inputs closed: what is stashed is processed, then the operator finishes.
//! * State: the epochs in flight. Cost: some ten nanoseconds an input and epoch; data are moved, never copied, but to all
//!   readers of a stream except the last.
//! * The output frontier promises: everything at epochs before it has been given.
//!
//! # Examples
//!
//! An operator that counts the edits of each epoch, also of one that has none, and another that reads it:
//!
//! ```
//! use marea_model::{ConfigUpdate, Progress};
//! use marea_operators::epochs::{Clock, EpochOperator, EpochStream, Feed};
//! use std::sync::Arc;
//!
//! fn counts<'scope>(clock: Clock<'scope>) -> EpochStream<'scope, (u64, usize)> {
//!     let mut operator = EpochOperator::new("counts", clock);
//!     let (counts, stream) = operator.output();
//!     operator.build(move |epoch, feed| counts.give((epoch, feed.config.len())));
//!     stream
//! }
//! # use std::{cell::RefCell, rc::Rc};
//! # use timely::dataflow::operators::Input;
//! # timely::execute_directly(|worker| {
//! #     let seen: Rc<RefCell<Vec<(u64, usize)>>> = Rc::default();
//! #     let all = seen.clone();
//! #     let mut input = worker.dataflow(|scope| {
//! #         let (input, stream) = scope.new_input::<Vec<Arc<Feed>>>();
//! #         let clock = Clock::new(stream);
//! #         let counts = counts(clock.clone());
//! #         let mut operator = EpochOperator::new("watch", clock.clone());
//! #         let counts = operator.input(counts);
//! #         operator.build(move |_, _| seen.borrow_mut().extend(counts.drain()));
//! #         clock.build();
//! #         input
//! #     });
//! #     let edit = ConfigUpdate::Put { key: "/a".into(), value: "b".into(), revision: 1 };
//! #     for (epoch, config) in [(0, vec![edit.clone(), edit]), (9, vec![])] {
//! #         input.advance_to(epoch);
//! #         input.send(Arc::new(Feed { config, ..(*Feed::at(Progress::START)).clone() }));
//! #         input.advance_to(epoch + 1);
//! #         worker.step_while(|| all.borrow().last().is_none_or(|(last, _)| *last < epoch));
//! #     }
//! #     assert_eq!(all.take(), [(0, 2), (9, 0)]);
//! # });
//! ```

use marea_model::{AccountSnapshot, ConfigUpdate, Epoch, Progress, Sealed, TickSlice};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use timely::ExchangeData;
use timely::communication::Pull;
use timely::dataflow::Stream;
use timely::dataflow::channels::Message;
use timely::dataflow::channels::pact::{Exchange, ParallelizationContract, Pipeline};
use timely::dataflow::channels::pushers;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::InputHandleCore;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

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

/// What has been sent at an epoch, in pieces as it came.
type Pieces<D> = Rc<RefCell<Vec<Vec<D>>>>;

/// One input, as the kernel's closure reads it: what was sent at the epoch that is being processed.
#[derive(Debug)]
pub struct Input<D> {
    current: Pieces<D>,
}

impl<D> Input<D> {
    /// All that was sent at this epoch, in the order of arrival (which differs from run to run where several workers
    /// send). What is not drained is dropped when the next epoch begins.
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

/// A stream of `D` at epochs: what an output gives, for whoever reads it.
pub struct EpochStream<'scope, D> {
    link: Rc<Link<'scope, D>>,
}

impl<D> Clone for EpochStream<'_, D> {
    fn clone(&self) -> Self {
        EpochStream { link: Rc::clone(&self.link) }
    }
}

struct Link<'scope, D> {
    /// The operator of the dataflow whose part gives.
    giver: Cell<usize>,
    buffer: Rc<RefCell<Vec<D>>>,
    /// Inputs of the same operator.
    readers: RefCell<Vec<Pieces<D>>>,
    /// Whether another operator reads it.
    leaves: Cell<bool>,
    /// Then what it reads, once the giver has been made.
    stream: RefCell<Option<Stream<'scope, Epoch, Vec<D>>>>,
}

impl<'scope, D: Clone + 'static> Link<'scope, D> {
    fn stream(&self) -> Stream<'scope, Epoch, Vec<D>> {
        self.stream.borrow().clone().expect("operators are made in the order in which they read each other")
    }
}

/// The end of a link that gives, whatever the type of its data.
trait Giver<'scope> {
    fn set_operator(&self, operator: usize);
    /// Adds the output, if it leaves the operator.
    fn connect(&self, builder: &mut OperatorBuilder<'scope, Epoch>) -> Box<dyn Emit>;
}

impl<'scope, D: Clone + 'static> Giver<'scope> for Link<'scope, D> {
    fn set_operator(&self, operator: usize) {
        self.giver.set(operator);
    }

    fn connect(&self, builder: &mut OperatorBuilder<'scope, Epoch>) -> Box<dyn Emit> {
        let output = self.leaves.get().then(|| {
            let port = builder.shape().outputs();
            let (output, stream) = builder.new_output();
            *self.stream.borrow_mut() = Some(stream);
            (port, output)
        });
        Box::new(EmitOf { output, buffer: Rc::clone(&self.buffer), readers: self.readers.take() })
    }
}

/// The output side of the driver, whatever the type of its data.
trait Emit {
    /// Hands on what the kernel gave.
    fn emit(&mut self, capabilities: &[Capability<Epoch>]);
}

struct EmitOf<D: 'static> {
    output: Option<(usize, pushers::Output<Epoch, Vec<D>>)>,
    buffer: Rc<RefCell<Vec<D>>>,
    readers: Vec<Pieces<D>>,
}

impl<D: Clone> Emit for EmitOf<D> {
    fn emit(&mut self, capabilities: &[Capability<Epoch>]) {
        // What was not drained of the epoch before is dropped.
        self.readers.iter().for_each(|pieces| pieces.borrow_mut().clear());
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() {
            return;
        }
        let mut left = self.readers.len() + usize::from(self.output.is_some());
        let mut copy = || {
            left -= 1;
            if left == 0 { std::mem::take(&mut *buffer) } else { buffer.clone() }
        };
        for pieces in &self.readers {
            pieces.borrow_mut().push(copy());
        }
        if let Some((port, output)) = &mut self.output {
            output.activate().give(&capabilities[*port], &mut copy());
        }
        buffer.clear();
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
    current: Pieces<D>,
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

/// Adds an input to an operator of the dataflow.
fn stash<'scope, D: 'static, P: ParallelizationContract<Epoch, Vec<D>>>(
    builder: &mut OperatorBuilder<'scope, Epoch>,
    stream: Stream<'scope, Epoch, Vec<D>>,
    pact: P,
    current: Pieces<D>,
) -> Box<dyn Stash> {
    Box::new(StashOf { handle: builder.new_input(stream, pact), messages: VecDeque::new(), current })
}

type Connect<'scope> = Box<dyn FnOnce(&mut OperatorBuilder<'scope, Epoch>) -> Box<dyn Stash> + 'scope>;
type Kernel = Box<dyn FnMut(Epoch, &Feed)>;

/// A kernel among those of its operator of the dataflow.
struct Part<'scope> {
    operator: usize,
    name: String,
    /// Inputs from other operators.
    inputs: Vec<Connect<'scope>>,
    outputs: Vec<Rc<dyn Giver<'scope> + 'scope>>,
    kernel: Kernel,
}

struct Plan<'scope> {
    feeds: Stream<'scope, Epoch, Vec<Arc<Feed>>>,
    parts: RefCell<Vec<Part<'scope>>>,
}

/// What tells the epochs. The operators that are built upon it are made by [`Clock::build`], in their order.
#[derive(Clone)]
pub struct Clock<'scope> {
    plan: Rc<Plan<'scope>>,
}

impl<'scope> Clock<'scope> {
    /// Of one feed an epoch, which must reach every worker by itself: it is not routed.
    pub fn new(feeds: Stream<'scope, Epoch, Vec<Arc<Feed>>>) -> Self {
        Clock { plan: Rc::new(Plan { feeds, parts: RefCell::default() }) }
    }

    /// Makes the operators: without it nothing happens.
    pub fn build(self) {
        let feeds = &self.plan.feeds;
        let mut parts = self.plan.parts.take().into_iter().peekable();
        while let Some(operator) = parts.peek().map(|part| part.operator) {
            let mut mine: Vec<Part<'scope>> = Vec::new();
            while let Some(part) = parts.next_if(|part| part.operator == operator) {
                mine.push(part);
            }
            let names: Vec<&str> = mine.iter().map(|part| part.name.as_str()).collect();
            let mut builder = OperatorBuilder::new(names.join(" "), feeds.scope());
            let clock = Pieces::default();
            let mut stashes = vec![stash(&mut builder, feeds.clone(), Pipeline, Rc::clone(&clock))];
            let mut kernels: Vec<(Kernel, Vec<Box<dyn Emit>>)> = Vec::new();
            for Part { inputs, outputs, kernel, .. } in mine {
                stashes.extend(inputs.into_iter().map(|connect| connect(&mut builder)));
                kernels.push((kernel, outputs.iter().map(|giver| giver.connect(&mut builder)).collect()));
            }
            drive(builder, clock, stashes, kernels);
        }
    }
}

/// Builds an operator of the dataflow.
fn drive(
    builder: OperatorBuilder<'_, Epoch>,
    clock: Pieces<Arc<Feed>>,
    mut stashes: Vec<Box<dyn Stash>>,
    mut kernels: Vec<(Kernel, Vec<Box<dyn Emit>>)>,
) {
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
                for capability in &mut capabilities {
                    capability.downgrade(&epoch);
                }
                // Whoever sends data at an epoch tells it to the clock; else the data would be lost, silently.
                let feed = clock.borrow_mut().pop().and_then(|mut feeds| feeds.pop());
                let feed = feed.expect("the clock tells every epoch with data");
                for (kernel, emits) in &mut kernels {
                    kernel(epoch, &feed);
                    emits.iter_mut().for_each(|emit| emit.emit(&capabilities));
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

/// Builds one operator: name its inputs and outputs, then [`EpochOperator::build`] it around a kernel.
pub struct EpochOperator<'scope> {
    name: String,
    clock: Clock<'scope>,
    /// The least place in the dataflow that its inputs allow.
    operator: usize,
    inputs: Vec<Box<dyn FnOnce(usize) -> Option<Connect<'scope>> + 'scope>>,
    outputs: Vec<Rc<dyn Giver<'scope> + 'scope>>,
}

impl<'scope> EpochOperator<'scope> {
    /// An operator without inputs and outputs yet.
    pub fn new(name: &str, clock: Clock<'scope>) -> Self {
        EpochOperator { name: name.to_owned(), clock, operator: 0, inputs: Vec::new(), outputs: Vec::new() }
    }

    /// Adds an input: what this worker gives.
    pub fn input<D: Clone + 'static>(&mut self, stream: EpochStream<'scope, D>) -> Input<D> {
        self.add(stream, false, |builder, stream, current| stash(builder, stream, Pipeline, current))
    }

    /// Adds an input: of what all workers give, what `route` sends here, by a hash.
    pub fn routed<D: ExchangeData + Clone>(
        &mut self,
        stream: EpochStream<'scope, D>,
        route: impl Fn(&D) -> u64 + 'static,
    ) -> Input<D> {
        self.add(stream, true, |builder, stream, current| {
            stash(builder, stream, Exchange::new(move |data: &D| route(data)), current)
        })
    }

    fn add<D: Clone + 'static>(
        &mut self,
        stream: EpochStream<'scope, D>,
        from_others: bool,
        connect: impl FnOnce(
            &mut OperatorBuilder<'scope, Epoch>,
            Stream<'scope, Epoch, Vec<D>>,
            Pieces<D>,
        ) -> Box<dyn Stash>
        + 'scope,
    ) -> Input<D> {
        let link = stream.link;
        let changes_workers = from_others && self.clock.plan.feeds.scope().peers() > 1;
        self.operator = self.operator.max(link.giver.get() + usize::from(changes_workers));
        let current = Pieces::default();
        let input = Input { current: Rc::clone(&current) };
        self.inputs.push(Box::new(move |operator| {
            if link.giver.get() == operator {
                link.readers.borrow_mut().push(current);
                return None;
            }
            link.leaves.set(true);
            Some(Box::new(move |builder: &mut OperatorBuilder<'scope, Epoch>| connect(builder, link.stream(), current)))
        }));
        input
    }

    /// Adds an output: where the kernel gives, and the stream that this becomes.
    pub fn output<D: Clone + 'static>(&mut self) -> (Output<D>, EpochStream<'scope, D>) {
        let buffer = Rc::new(RefCell::new(Vec::new()));
        let link = Rc::new(Link {
            giver: Cell::new(0),
            buffer: Rc::clone(&buffer),
            readers: RefCell::default(),
            leaves: Cell::new(false),
            stream: RefCell::new(None),
        });
        self.outputs.push(link.clone());
        (Output { buffer }, EpochStream { link })
    }

    /// Builds the operator around `kernel`, which is called once for each complete epoch, with what entered at it.
    pub fn build(self, kernel: impl FnMut(Epoch, &Feed) + 'static) {
        let EpochOperator { name, clock, operator, inputs, outputs } = self;
        // They are made, and run, in the order in which they are built.
        let operator = operator.max(clock.plan.parts.borrow().last().map_or(0, |part| part.operator));
        let inputs = inputs.into_iter().filter_map(|place| place(operator)).collect();
        outputs.iter().for_each(|giver| giver.set_operator(operator));
        clock.plan.parts.borrow_mut().push(Part { operator, name, inputs, outputs, kernel: Box::new(kernel) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use timely::dataflow::operators::Input as _;

    type Seen = Rc<RefCell<Vec<(Epoch, String)>>>;
    type Fired = Rc<RefCell<Vec<(Epoch, Epoch)>>>;

    /// What a worker sends at an epoch.
    type Sent = Vec<(Epoch, Vec<u64>, &'static str)>;

    /// Gives numbers and words of their epochs.
    fn send<'scope>(clock: Clock<'scope>, sent: Sent) -> (EpochStream<'scope, u64>, EpochStream<'scope, String>) {
        let mut operator = EpochOperator::new("send", clock);
        let (numbers, number_stream) = operator.output();
        let (words, word_stream) = operator.output();
        operator.build(move |epoch, _| {
            for (_, n, word) in sent.iter().filter(|(of, ..)| *of == epoch) {
                numbers.give_vec(n.clone());
                words.give((*word).to_owned());
            }
        });
        (number_stream, word_stream)
    }

    /// A kernel that shows what it is called with, and has a timer: it says so once `due` is reached.
    fn show<'scope>(
        clock: Clock<'scope>,
        numbers: EpochStream<'scope, u64>,
        words: EpochStream<'scope, String>,
        due: Epoch,
    ) -> (EpochStream<'scope, String>, EpochStream<'scope, Epoch>) {
        let mut operator = EpochOperator::new("show", clock);
        let numbers = operator.routed(numbers, |n: &u64| *n);
        let (shown, shown_stream) = operator.output();
        let words = operator.routed(words, |_| 0);
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
        clock: Clock<'scope>,
        stream: EpochStream<'scope, D>,
        seen: &Rc<RefCell<Vec<(Epoch, D)>>>,
    ) {
        let mut operator = EpochOperator::new("watch", clock);
        let (rows, seen) = (operator.input(stream), Rc::clone(seen));
        operator.build(move |epoch, _| seen.borrow_mut().extend(rows.drain().map(|row| (epoch, row))));
    }

    /// What was shown, and when the timer fired.
    type Ran = (Vec<(Epoch, String)>, Vec<(Epoch, Epoch)>);

    /// Sends numbers and words of each epoch from worker 0, and feeds all workers with the clock; gives what this worker
    /// showed and when its timer fired.
    fn run(worker: &mut timely::worker::Worker, epochs: &Sent, due: Epoch) -> Ran {
        let (seen, fired) = (Seen::default(), Fired::default());
        let sent = if worker.index() == 0 { epochs.clone() } else { Vec::new() };
        let mut input = worker.dataflow(|scope| {
            let (input, feeds) = scope.new_input::<Vec<Arc<Feed>>>();
            let clock = Clock::new(feeds);
            let (numbers, words) = send(clock.clone(), sent);
            let (shown, timer) = show(clock.clone(), numbers, words, due);
            watch(clock.clone(), timer, &fired);
            watch(clock.clone(), shown, &seen);
            clock.build();
            input
        });
        for (epoch, ..) in epochs {
            input.advance_to(*epoch);
            input.send(Feed::at(Progress::START));
            input.advance_to(epoch + 1);
            worker.step_while(|| seen.borrow().last().is_none_or(|(last, _)| last < epoch));
        }
        (seen.take(), fired.take())
    }

    #[test]
    fn each_complete_epoch_once_in_order_also_without_data() {
        timely::execute_directly(|worker| {
            let epochs =
                vec![(3, vec![1, 2], "a"), (8, vec![3], ""), (20, vec![], ""), (30, vec![], ""), (31, vec![4], "b")];
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
            let epochs: Sent = (1..200).map(|e| (e * 7, (0..e * 5).collect(), "w")).collect();
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

    #[test]
    fn a_stream_reaches_all_its_readers_wherever_they_are() {
        for workers in [1, 2] {
            let results = timely::execute(timely::Config::process(workers), |worker| {
                let [near, far] = [Seen::default(), Seen::default()];
                let sent = vec![(1, vec![], "a"), (2, vec![], ""), (5, vec![], "b")];
                let mut input = worker.dataflow(|scope| {
                    let (input, feeds) = scope.new_input::<Vec<Arc<Feed>>>();
                    let clock = Clock::new(feeds);
                    let (numbers, words) = send(clock.clone(), sent.clone());
                    // One reads beside the sender, one beyond the exchange, and nobody the numbers that are shown.
                    watch(clock.clone(), words.clone(), &near);
                    show(clock.clone(), numbers, words.clone(), 0);
                    watch(clock.clone(), words, &far);
                    clock.build();
                    input
                });
                for (epoch, ..) in &sent {
                    input.advance_to(*epoch);
                    input.send(Feed::at(Progress::START));
                }
                input.close();
                while worker.step() {}
                [near.take(), far.take()]
            });
            // Only the first worker sends, and nothing of this changes workers.
            for seen in results.unwrap().join().into_iter().take(1).flat_map(Result::unwrap) {
                let seen: Vec<(Epoch, &str)> = seen.iter().map(|(e, s)| (*e, s.as_str())).collect();
                assert_eq!(seen, [(1, "a"), (2, ""), (5, "b")], "{workers} workers");
            }
        }
    }
}
