//! The screen of `forwarder top`: what it shows and what keys do. Reads and writes no terminal itself.

use super::listing::{Order, listing, sort, summary};
use crate::cli::Sort;
use crate::flows::filter::Filter;
use crate::flows::top::Top;
use clap::Parser;
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Flex, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Text;
use ratatui::widgets::{Cell, Row, Table};

const KEYS: &str = "b rate  p packets  c connections | f connections  h hosts | / filter | q quit";
const OPTIONS: &str = "--address PREFIX --port N --protocol P --state S | Enter: so be it | Esc: as it was";
/// Blanks between columns.
const GAP: u16 = 2;

/// All that is on it.
#[derive(Debug)]
pub struct Screen {
    order: Order,
    top: Option<Top>,
    filter: String,
    /// The filter that is being typed.
    typing: Option<String>,
    /// Why the last one is none.
    wrong: Option<String>,
}

/// What is to be done after a key.
#[derive(Debug)]
pub enum Act {
    /// Go on.
    Go,
    /// End.
    Quit,
    /// Watch other connections.
    Filter(Filter),
}

/// A filter as it is typed, in the words of the command line.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Typed {
    #[command(flatten)]
    filter: Filter,
}

impl Screen {
    /// With nothing measured yet.
    pub fn new(order: Order, filter: &Filter) -> Self {
        Self { order, top: None, filter: words(filter), typing: None, wrong: None }
    }

    /// Something has been measured.
    pub fn show(&mut self, top: Option<Top>) {
        self.top = top;
    }

    /// A key was pressed.
    pub fn press(&mut self, key: KeyEvent) -> Act {
        if key.kind == KeyEventKind::Release {
            return Act::Go;
        }
        // The terminal makes no signal of it while it is ours.
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Act::Quit } else { Act::Go };
        }
        if self.typing.is_some() {
            return self.type_filter(key.code);
        }
        self.wrong = None;
        let Order { hosts, sort } = self.order;
        self.order = match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Act::Quit,
            KeyCode::Char('b') => Order::new(hosts, Sort::Rate),
            KeyCode::Char('p') => Order::new(hosts, Sort::Packets),
            KeyCode::Char('c') => Order::new(true, Sort::Connections),
            KeyCode::Char('h') => Order::new(true, sort),
            // Connections have no connections that they could be sorted by.
            KeyCode::Char('f') => Order::new(false, if sort == Sort::Connections { Sort::Rate } else { sort }),
            KeyCode::Char('/') => {
                self.typing = Some(self.filter.clone());
                self.order
            }
            _ => self.order,
        };
        Act::Go
    }

    fn type_filter(&mut self, key: KeyCode) -> Act {
        let mut typed = self.typing.take().unwrap_or_default();
        match key {
            KeyCode::Enter => match parse(&typed) {
                Ok(filter) => {
                    (self.filter, self.wrong, self.top) = (words(&filter), None, None);
                    return Act::Filter(filter);
                }
                Err(why) => self.wrong = Some(why),
            },
            KeyCode::Esc => {
                self.wrong = None;
                return Act::Go;
            }
            KeyCode::Backspace => drop(typed.pop()),
            KeyCode::Char(letter) => typed.push(letter),
            _ => {}
        }
        self.typing = Some(typed);
        Act::Go
    }

    /// Draws all of it.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let lines = [Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)];
        let [head, filter, body, foot] = Layout::vertical(lines).areas(frame.area());
        let said = self.top.as_ref().map_or_else(|| "measuring …".to_owned(), summary);
        frame.render_widget(Text::raw(said), head);
        frame.render_widget(Text::raw(self.filter_line()), filter);
        let keys = if self.typing.is_some() { OPTIONS } else { KEYS };
        frame.render_widget(Text::raw(keys).style(Style::new().add_modifier(Modifier::REVERSED)), foot);
        if let Some(top) = &mut self.top {
            sort(top, self.order, usize::MAX);
            draw_list(frame, body, top, self.order);
        }
    }

    fn filter_line(&self) -> String {
        match (&self.typing, &self.wrong) {
            (Some(typed), None) => format!("filter: {typed}_"),
            (Some(typed), Some(why)) => format!("filter: {typed}_  {why}"),
            (None, _) if self.filter.is_empty() => String::new(),
            (None, _) => format!("filter: {}", self.filter),
        }
    }
}

/// Both bits and packets where there is room for them.
fn draw_list(frame: &mut Frame<'_>, body: Rect, top: &Top, order: Order) {
    let wide = listing(top, order, true);
    let width = |widths: &[usize]| widths.iter().map(|width| width + usize::from(GAP)).sum::<usize>();
    let fits = width(&wide.widths()) <= usize::from(body.width) + usize::from(GAP);
    let listing = if fits { wide } else { listing(top, order, false) };
    // Where there is too little room all the same, names are cut, not numbers.
    let constraints = listing.widths().into_iter().enumerate().map(|(at, width)| {
        let width = u16::try_from(width).unwrap_or(u16::MAX);
        if at < listing.numbers { Constraint::Max(width) } else { Constraint::Length(width) }
    });
    let cell = |at: usize, word: &str| {
        let side = if at < listing.numbers { Alignment::Left } else { Alignment::Right };
        Cell::new(Text::raw(word.to_owned()).alignment(side))
    };
    let heads = Row::new(listing.head.iter().enumerate().map(|(at, word)| cell(at, word)));
    let rows = listing.rows.iter().map(|row| Row::new(row.iter().enumerate().map(|(at, word)| cell(at, word))));
    let table = Table::new(rows, constraints).column_spacing(GAP).flex(Flex::Start);
    frame.render_widget(table.header(heads.style(Style::new().add_modifier(Modifier::BOLD))), body);
}

/// The filter that words say; the dashes may be left out.
fn parse(typed: &str) -> Result<Filter, String> {
    let words = typed
        .split_whitespace()
        .enumerate()
        .map(|(at, word)| if at % 2 == 0 && !word.starts_with('-') { format!("--{word}") } else { word.to_owned() });
    match Typed::try_parse_from(words) {
        Ok(Typed { filter }) => Ok(filter),
        Err(error) => {
            let said = error.to_string();
            Err(said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
        }
    }
}

/// A filter in the words of the command line.
fn words(Filter { address, port, protocol, state }: &Filter) -> String {
    let named = [
        address.map(|address| format!("--address {address}")),
        port.map(|port| format!("--port {port}")),
        protocol.map(|protocol| format!("--protocol {}", crate::flows::filter::protocol_name(protocol))),
        state.as_ref().map(|state| format!("--state {state}")),
    ];
    named.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::listing::tests::example;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen() -> Screen {
        let mut screen = Screen::new(Order::new(false, Sort::Rate), &Filter::default());
        screen.show(Some(example()));
        screen
    }

    fn drawn(screen: &mut Screen, (width, height): (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory has room");
        terminal.draw(|frame| screen.draw(frame)).expect("memory takes it");
        let buffer = terminal.backend().buffer();
        let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn press(screen: &mut Screen, keys: &str) -> Act {
        let press = |screen: &mut Screen, key| screen.press(KeyEvent::new(key, KeyModifiers::NONE));
        let code = |letter| if letter == '\n' { KeyCode::Enter } else { KeyCode::Char(letter) };
        keys.chars().fold(Act::Go, |_, letter| press(screen, code(letter)))
    }

    #[test]
    fn connections_and_hosts_are_shown_in_the_order_asked_for() {
        let mut screen = screen();
        let lines = drawn(&mut screen, (120, 8));
        assert!(lines[0].starts_with("13 connections, "), "{lines:#?}");
        assert!(lines[2].contains("client") && lines[2].ends_with("packet/s sent  received"), "{lines:#?}");
        let first = "udp  10.0.1.10:40000  203.0.113.10:53    198.51.100.10:1024    ";
        assert!(lines[3].starts_with(first) && lines[3].contains("8.00 M"), "{lines:#?}");
        assert_eq!(lines[7], KEYS);
        press(&mut screen, "p");
        assert!(drawn(&mut screen, (120, 8))[3].contains("-> 10.0.1.21:8443"));
        press(&mut screen, "c");
        assert!(drawn(&mut screen, (120, 8))[3].starts_with("10.0.1.21    "));
        press(&mut screen, "b");
        assert!(drawn(&mut screen, (120, 8))[3].starts_with("10.0.1.10    "), "hosts stay hosts");
        press(&mut screen, "cf");
        assert!(drawn(&mut screen, (120, 8))[3].starts_with("udp  10.0.1.10:40000"));
        assert!(matches!(press(&mut screen, "q"), Act::Quit));
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(matches!(screen.press(control_c), Act::Quit));
    }

    #[test]
    fn a_small_screen_has_what_it_is_sorted_by() {
        let mut screen = screen();
        let lines = drawn(&mut screen, (86, 6));
        assert!(lines[2].contains("bit/s sent") && !lines[2].contains("packet/s"), "{lines:#?}");
        press(&mut screen, "p");
        let lines = drawn(&mut screen, (86, 6));
        assert!(lines[2].contains("packet/s sent") && lines[3].contains("4.00 k"), "{lines:#?}");
        // Too small for anything is no reason to fail.
        drawn(&mut screen, (3, 2));
        drawn(&mut screen, (1, 1));
    }

    #[test]
    fn a_filter_is_typed_in_the_words_of_the_command_line() {
        let mut screen = screen();
        press(&mut screen, "/port 53x\n");
        let lines = drawn(&mut screen, (120, 6));
        assert!(lines[1].starts_with("filter: port 53x_  invalid value '53x'"), "{lines:#?}");
        screen.press(KeyEvent::new(KeyCode::Backspace, KeyModifiers::NONE));
        let Act::Filter(filter) = press(&mut screen, " --protocol udp\n") else { panic!("it is a filter") };
        assert_eq!((filter.port, filter.protocol, filter.address), (Some(53), Some(17), None));
        let lines = drawn(&mut screen, (120, 6));
        assert_eq!((lines[0].as_str(), lines[1].as_str()), ("measuring …", "filter: --port 53 --protocol udp"));
        press(&mut screen, "/q");
        screen.press(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE));
        assert!(drawn(&mut screen, (120, 6))[1].ends_with("udp"), "as it was");
    }
}
