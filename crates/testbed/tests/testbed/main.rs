//! The testbed's own tests: what checks the rest must itself be checked.

mod auditor;
mod chaos;
mod checker;
mod cloud;
mod compat;
mod faults;
mod file_map;
mod postgres;
mod process;
mod proxy;
mod queue;
mod seed;
mod traffic;
mod world;
