//! The runtime's steps, for finding out where it fails (`--debug`). Steps of the container's first process itself are
//! only visible through its answers.

use std::fmt;
use std::rc::Rc;

type Listener = dyn Fn(&str);

/// The receiver of steps; none by default.
#[derive(Clone, Default)]
pub struct Steps(Option<Rc<Listener>>);

impl Steps {
    /// `listener` gets a line for each step.
    pub fn told_to(listener: impl Fn(&str) + 'static) -> Steps {
        Steps(Some(Rc::new(listener)))
    }

    pub(crate) fn tell(&self, step: fmt::Arguments<'_>) {
        if let Some(listener) = &self.0 {
            listener(&step.to_string());
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() { "Steps(heard)" } else { "Steps(unheard)" })
    }
}
