"""A command that writes, prints and ends in every way that a command can."""
import sys

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from netbox_test_plugin.side import wait_at


class Command(BaseCommand):
    help = 'Say something, and end in some way.\n\nIt is for tests alone.'

    def add_arguments(self, parser):
        parser.add_argument('word', help='What is said')
        parser.add_argument('more', nargs='*')
        parser.add_argument('--times', type=int, default=1, help='How often, of 100%%; %(default)s by default')
        parser.add_argument('--tone', choices=['soft', 'loud'])
        parser.add_argument('--aside', action='store_true')
        parser.add_argument('--gate')
        parser.add_argument('--end', default='well')
        parser.add_argument('--task-id')
        parser.add_argument('--no-input', action='store_false', dest='interactive')

    def handle(self, *args, **options):
        for __ in range(options['times']):
            self.stdout.write(self.style.SUCCESS(f'{options["word"]} {options["more"]} {options["tone"]}'))
        if options['aside']:
            self.stderr.write(f'\x1b[31;1maside {options["interactive"]}\x1b[0m')
            print('printed', 'with', 'print()')
            print('printed as an error', file=sys.stderr)
        if options['gate']:
            self.stdout.write('begun', ending='')
            self.stdout.flush()
            wait_at(options['gate'])
            self.stdout.write(' and done\r10 %\r20 %\n\nthe last line', ending='')
        return self.end(options['end'])

    def end(self, how):
        if how == 'error':
            raise CommandError('It did not work', returncode=3)
        if how == 'exit':
            sys.exit(4)
        if how == 'exit well':
            sys.exit()
        if how == 'exception':
            raise ValueError('unexpected')
        if how == 'another':
            call_command('speak', 'hello', volume=11)
        return None if how == 'well' else how
