//! Hypervisors: what each can do, its machines, and the programs that run beside it.
//!
//! A new backend is a folder here and a line in [`registry`]. It gives a [`backend::Backend`] (name, what it can give a
//! machine, what its guests need, how it is found), a [`machine::Hypervisor`] (how a machine of it is started and where its
//! guest connects) and a [`machine::Machine`] (wait, kill, pause). A program that it needs beside it goes to
//! [`helpers`], where other backends find it too. Nothing here knows of images, instances or agents: what is booted comes
//! from [`super::kernel`], and [`super::launch`] puts both together.

pub mod backend;
pub mod console;
pub mod helpers;
pub mod machine;
pub mod qemu;
pub mod registry;
pub mod vfkit;
